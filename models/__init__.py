"""Teachers: small real models with data, and the loaders of everything a user can name."""

MODELS: dict[str, str] = {
    "digits": "edgecompile.models.digits:teacher",
    "efficientnet_lite0": "edgecompile.models.efficientnet_lite0:teacher",
    "fashion": "edgecompile.models.fashion:teacher",
    "minilm": "edgecompile.models.minilm:teacher",
}
"""Name on the command line -> `module:function` that returns a `Teacher`; imported only when it is asked for."""
