"""Build the stages' images with `docker build`, in the order they stand on each other, two at a time.

    python images/build.py [--flavor cpu|cuda] [--base debian|IMAGE] [--wheels FOLDER] [--index URL] [--push REGISTRY]
                           [STAGE …]

A build gets this machine's certificates and pip settings (index, proxy, time-outs) as secrets and the wheels of its
local folders as a mount; none of it stays in an image. Needs an engine with BuildKit; no buildx.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from inputs import (
    BuildError,
    certificates,
    pip_settings,
    proxies,
    revision,
    source_address,
    wheel_image,
    wheels_at_hand,
)
from layers import FLAVORS, LAYERS, PARENTS, ROOT, STAGES, VERSION, interface, tag

DEBIAN = "microstages/base-os:bookworm"
WITHOUT_CPU_WHEEL = """\
build: no wheel of torch without CUDA is at hand: the general one comes with 2.2 GB of CUDA libraries
  --wheels FOLDER with torch's +cpu wheel, or --index URL of PyTorch's CPU wheels, makes the images 4.2 GB smaller"""
DOCKERFILES = ROOT / "images"


def code_folders(stage: str) -> tuple[Path, ...]:
    """Where the stage's code lies."""
    return tuple((ROOT / "stages" / stage / folder).resolve() for folder in interface(stage)["code"])


def code_of(stage: str) -> str:
    """The stage's code identity, as the runner computes it from a checkout."""
    sys.path.insert(0, str(ROOT / "stages" / "lib"))
    from microstages.identity import code_identity

    return code_identity(code_folders(stage))


def by_code(stage: str, flavor: str, registry: str = "microstages") -> str:
    """The name by which a cluster asks for the image of this very code of a stage."""
    return f"{registry.rstrip('/')}/{stage}:{code_of(stage).removeprefix('sha256:')[:12]}-{flavor}"


def arguments_of(stage: str) -> dict[str, str]:
    """The build arguments that become the labels of a stage's image."""
    commit = revision((*code_folders(stage), ROOT / "images"))
    compact = json.dumps(interface(stage), separators=(",", ":"), ensure_ascii=False)
    return {"CODE": code_of(stage), "INTERFACE": compact, "SOURCE": source_address(), "REVISION": commit}


@dataclass(frozen=True)
class Engine:
    """A Docker client that can build with BuildKit, and the engine behind it."""

    client: str

    @staticmethod
    def find() -> Engine:
        """The first client in PATH whose BuildKit works: newer clients need a plugin for it, not always there."""
        clients = [os.path.join(p, "docker") for p in os.environ.get("PATH", "").split(os.pathsep)]
        clients = list(dict.fromkeys(c for c in clients if os.access(c, os.X_OK)))
        if not clients:
            raise BuildError("there is no docker in PATH", "install Docker 20.10 or newer")
        answer = subprocess.run(
            [clients[0], "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True, check=False
        )
        if answer.returncode:
            words = (answer.stderr.strip() or "no answer").splitlines()[-1]
            raise BuildError(f"no Docker engine answers: {words}", "start dockerd, or point DOCKER_HOST to an engine")
        for client in clients:
            if (
                subprocess.run(
                    [client, "build", "--help"], capture_output=True, env=Engine(client).environment(), check=False
                ).returncode
                == 0
            ):
                return Engine(client)
        raise BuildError(
            f"{clients[0]} cannot build with BuildKit", "install its buildx plugin, or a client of version 20.10"
        )

    def environment(self) -> dict[str, str]:
        # plain images in the engine's own store, whichever builder is the user's default
        own = {"DOCKER_BUILDKIT": "1", "BUILDX_BUILDER": "default", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
        return {**os.environ, **own}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [self.client, *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment(), capture_output=True, text=True, check=False)

    def image(self, name: str) -> tuple[str, int] | None:
        """Id and size in bytes of an image that is there."""
        done = self.run("image", "inspect", "--format", "{{.Id}} {{.Size}}", name)
        return (done.stdout.split()[0], int(done.stdout.split()[1])) if done.returncode == 0 else None


@dataclass(frozen=True)
class Build:
    """What every image of one run is built with."""

    engine: Engine
    flavor: str
    base: str
    wheels: str
    secrets: tuple[str, ...]
    options: tuple[str, ...]
    say: Callable[[str], None]

    def make(self, name: str) -> None:
        """Build one image and say how it went."""
        began = time.time()
        arguments = {"BASE": self.base, "WHEELS": self.wheels}
        file, target = DOCKERFILES / "base" / "Dockerfile", name
        if name not in ("base", "builder"):
            stage = name in STAGES
            file, target = DOCKERFILES / f"{name if stage else 'layer'}.Dockerfile", ""
            arguments = {
                "PARENT": tag(PARENTS[name], self.flavor), "BUILDER": tag("builder", self.flavor),
                "WHEELS": self.wheels, "FLAVOR": self.flavor,
            }  # fmt: skip
            arguments |= {"VERSION": VERSION, **arguments_of(name)} if stage else {"LAYER": name}
        image = tag(name, self.flavor)
        before = self.engine.image(image)
        command = ["build", "--progress", "plain", "--file", str(file), "--tag", image]
        if name in STAGES:
            command += ["--tag", f"microstages/{name}:latest"]
            command += ["--tag", by_code(name, self.flavor)]
        command += ["--target", target] if target else []
        for key, value in arguments.items():
            command += ["--build-arg", f"{key}={value}"]
        for secret in self.secrets:
            command += ["--secret", secret]
        command += self.options
        done = self.engine.run(*command, ".")
        if done.returncode:
            if (absent := re.search(r"\[internal\] load metadata for (\S+):\n-", done.stderr)) and name in (
                "base",
                "builder",
            ):
                raise BuildError(
                    f"no registry gives the image {absent[1]}", "--base IMAGE that is here, or --base debian"
                )
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise BuildError(
                f"{image} was not built:\n    " + "\n    ".join(lines[-15:]), f"see {file.relative_to(ROOT)}"
            )
        after = self.engine.image(image)
        assert after is not None, image
        how = "cached" if all_cached(done.stderr) else "built"
        if how == "built" and before and before[0] == after[0]:
            how = "built, the same bits"
        self.say(f"{image:38} {after[1] / 1e6:8,.0f} MB {time.time() - began:7.1f} s  {how}")


def push(build: Build, stages: list[str], registry: str) -> None:
    """Push the stages' images, each under the name of its code, and say by which digest it is found."""
    for stage in stages:
        name = by_code(stage, build.flavor, registry)
        for words in (("tag", by_code(stage, build.flavor), name), ("push", name)):
            done = build.engine.run(*words)
            if done.returncode:
                why = (done.stderr.strip() or done.stdout.strip() or "no answer").splitlines()[-1]
                raise BuildError(
                    f"{name} was not pushed: {why}", f"docker login {registry.partition('/')[0]}, if it wants that"
                )
        digest = re.search(r"digest: (sha256:[0-9a-f]{64})", done.stdout)
        build.say(f"{name}  {digest[1] if digest else ''}".rstrip())


def all_cached(progress: str) -> bool:
    """Whether BuildKit's plain progress tells of no step that was executed."""
    steps = set(re.findall(r"(?m)^#(\d+) \[.*\] (?:RUN|COPY|WORKDIR) ", progress))
    return steps <= set(re.findall(r"(?m)^#(\d+) CACHED", progress))


def needed(stages: list[str]) -> list[str]:
    """The images under and including some stages, each after what it stands on."""
    wanted = {"builder"}
    todo = list(stages)
    while todo:
        name = todo.pop()
        wanted.add(name)
        todo += [PARENTS[name]] if name in PARENTS else []
    return [n for n in ("builder", "base", *LAYERS, *STAGES) if n in wanted]


def run(build: Build, names: list[str], at_once: int) -> None:
    """Build all, each when what it stands on is there."""
    waiting, running, done = list(names), dict[futures.Future[None], str](), set[str]()
    with futures.ThreadPoolExecutor(at_once) as pool:
        while waiting or running:
            for name in list(waiting):
                below = {PARENTS[name], "builder"} if name in PARENTS else set()
                if below <= done and len(running) < at_once:
                    waiting.remove(name)
                    running[pool.submit(build.make, name)] = name
            ended, _ = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            for future in ended:
                name = running.pop(future)
                future.result()
                done.add(name)


def debian_base(engine: Engine) -> str:
    """The base system from Debian's packages, made once."""
    done = subprocess.run(
        [ROOT / "images" / "base" / "debian.sh"], env={**os.environ, "DOCKER": engine.client}, check=False
    )
    if done.returncode:
        raise BuildError("the base system was not made", "see the lines above")
    return DEBIAN


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}; all by default")
    parser.add_argument("--flavor", choices=FLAVORS, default="cpu", help="cpu, or cuda for NVIDIA GPUs")
    parser.add_argument(
        "--base",
        default="debian:bookworm-slim",
        metavar="IMAGE",
        help="what all stands on; `debian` makes it from Debian's packages",
    )
    parser.add_argument(
        "--wheels",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="wheels to take instead of the index's, beside those of pip's find-links",
    )
    parser.add_argument("--index", action="append", default=[], metavar="URL", help="a further package index")
    parser.add_argument(
        "--no-index", action="store_true", help="take wheels from the folders only, and build without a network"
    )
    parser.add_argument(
        "--bake", action="store_true", help="build nothing; print the labels for images/docker-bake.hcl"
    )
    parser.add_argument(
        "--push", default="", metavar="REGISTRY", help="push them too, such as to ghcr.io/team/microstages"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="images at once")
    args = parser.parse_args()
    if wrong := [s for s in args.stages if s not in STAGES]:
        parser.error(f"there is no stage {wrong[0]}; there are {', '.join(STAGES)}")
    return args


def main() -> int:
    args = parse()
    if args.bake:
        print(json.dumps({"target": {s: {"args": arguments_of(s)} for s in STAGES}}, indent=1))
        return 0
    try:
        engine = Engine.find()
        base = debian_base(engine) if args.base == "debian" else args.base
        names = needed(args.stages or list(STAGES))
        with tempfile.TemporaryDirectory() as folder:
            secrets = []
            if ca := certificates():
                secrets.append(f"id=ca,src={ca}")
            settings, local = pip_settings(args.index, args.no_index)
            if settings:
                file = Path(folder) / "pip.conf"
                file.touch(mode=0o600)
                file.write_text(settings)
                secrets.append(f"id=pip,src={file}")
            found = wheels_at_hand([*args.wheels, *local])
            cpu = any(w.name.startswith("torch-") and "+cpu-" in unquote(w.name) for w in found.values())
            if args.flavor == "cpu" and "torch" in names and not cpu and "index-url" not in settings:
                print(WITHOUT_CPU_WHEEL, file=sys.stderr)
            wheels = wheel_image(engine.client, found)
            options = ["--network", "none"] if args.no_index else proxies()
            build = Build(
                engine, args.flavor, base, wheels, tuple(secrets), tuple(options), lambda line: print(line, flush=True)
            )
            run(build, names, args.jobs)
            if args.push:
                push(build, args.stages or list(STAGES), args.push)
    except BuildError as error:
        print(f"build: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
