"""One TOML file a device; `edgecompile.device` reads them."""
