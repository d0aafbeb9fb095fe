"""Lossy passes kept in the cache, by everything that goes into them: a rerun of a build resumes behind them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from edgecompile.building.workshop import Workshop
from edgecompile.data import digest_of
from edgecompile.pass_manager import Context, Pass, show
from edgecompile.program import Program
from edgecompile.store import Cache, key


def remembered(
    cache: Cache, versions: Mapping[str, str], shop: Workshop, teacher_digest: str
) -> Callable[[Pass, Program, Context], Program]:
    """Lossy passes, which take long, are kept in the cache by everything that goes into them."""
    from edgecompile import program_file
    from edgecompile.measure import machine

    def apply(one: Pass, program: Program, ctx: Context) -> Program:
        one = one.settled(program, ctx)
        if one.exact or one.times:
            shop.tell("exact passes" if one.exact else f"running {one.name}", 0, 1)
            return one.run(program, ctx)
        searches = ctx.drop is not None and ctx.max_drop is not None
        if not type(one).__module__.startswith("edgecompile.") or (searches and shop.score and shop.score.function):
            shop.tell(f"running {one.name}", 0, 1)  # the user's own code, which no version number stands for
            return one.run(program, ctx)
        searched = [ctx.max_drop, shop.evaluate.digest, teacher_digest] if searches and shop.evaluate else None
        flags = list(map(str, machine()["flags"]))  # type: ignore[call-overload]
        name = key(
            "pass",
            digest_of(program),
            show([one]),
            ctx.calib.digest if ctx.calib else None,
            ctx.train.digest if ctx.train else None,
            searched,
            repr(ctx.target),
            ctx.seed,
            versions,
            flags,
        )

        made: list[Program] = []

        def fill(folder: Path) -> None:
            shop.tell(f"running {one.name}", 0, 1)
            work = replace(ctx, work=cache.unfinished(name))
            made.append(one.run(program.clone(), work).retraced())
            program_file.save(made[0], folder)
            (folder / "said.json").write_text(json.dumps({"stats": ctx.stats, "notes": ctx.notes}))

        folder = cache.get(name) or cache.put(name, fill)
        cache.finished(name)
        said = json.loads((folder / "said.json").read_text())
        ctx.stats.update(said["stats"])
        ctx.notes[:] = said["notes"]
        return made[0] if made else program_file.load(folder)

    return apply
