"""Models and data sets of the Hugging Face hub: `hf://owner/name@revision`, `hf://datasets/owner/name@revision/path`.

A repository is what its commit is: a branch or tag is resolved to one, and without a network to the one that is in the
hub's own cache. Its files come through that cache as well, so what was downloaded before is there offline. Only files
that are read here are fetched: safetensors, JSON, text, tokenizers, data; no pickles.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microstages.artifact import Artifact, outside_files, outside_kind
from microstages.errors import TemporaryError, UserError
from microstages.remote import scrub

MODEL_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.md", "*.tiktoken"]
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Repository:
    """One revision of a repository, or a path in it."""

    uri: str
    type: str  # model or dataset
    name: str
    revision: str
    path: str

    @staticmethod
    def parse(uri: str) -> Repository:
        """Raises UserError where the address is not of the form."""
        found = re.fullmatch(r"hf://(datasets/|models/)?([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?", uri)
        if found is None:
            fix = "write hf://owner/name@revision, or hf://datasets/owner/name@revision/path"
            raise UserError("this is not the address of a repository", where=uri, fix=fix)
        kind, name, revision, path = found.groups()
        revision = (revision or "main").replace("%2F", "/")
        return Repository(uri, "dataset" if kind == "datasets/" else "model", name, revision, (path or "").strip("/"))

    def commit(self) -> str:
        """The commit that the revision is now; without a network the one in the hub's cache."""
        if _COMMIT.fullmatch(self.revision):
            return self.revision
        api = _hub(self.uri)
        if os.environ.get("HF_HUB_OFFLINE", "").lower() not in ("1", "true", "yes", "on"):
            try:
                info = api.HfApi().repo_info(self.name, repo_type=self.type, revision=self.revision, timeout=20)
                return str(info.sha)
            except Exception as error:
                told = self._told(error)
                if not isinstance(told, TemporaryError):
                    raise told from None
                if (cached := self._cached()) is None:
                    raise told from None
                return cached
        if (cached := self._cached()) is None:
            fix = "unset HF_HUB_OFFLINE, or download it where there is a network: hf download " + self.name
            raise UserError("it is not in the hub's cache, and HF_HUB_OFFLINE is set", where=self.uri, fix=fix)
        return cached

    def _ref(self) -> Path:
        """Where the hub's cache says which commit the revision was."""
        from huggingface_hub.constants import HF_HUB_CACHE

        return Path(HF_HUB_CACHE) / f"{self.type}s--{self.name.replace('/', '--')}" / "refs" / self.revision

    def _cached(self) -> str | None:
        with suppress(OSError):
            return self._ref().read_text().strip()
        return None

    def digest(self, commit: str) -> str:
        """What the repository is, by its commit."""
        text = f"{self.type} {self.name} {commit} {self.path}"
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def fetched(self, commit: str) -> Path:
        """The files on this machine."""
        patterns: list[str] | None = [self.path, f"{self.path}/*"] if self.path else None
        if self.type == "model":
            patterns = [f"{self.path}/{p}" if self.path else p for p in MODEL_FILES]
        try:
            folder = _hub(self.uri).snapshot_download(
                self.name, repo_type=self.type, revision=commit, allow_patterns=patterns
            )
        except UserError:
            raise
        except Exception as error:
            raise self._told(error) from None
        if not _COMMIT.fullmatch(self.revision):  # so that it is found by its name without a network
            with suppress(OSError):
                self._ref().parent.mkdir(parents=True, exist_ok=True)
                self._ref().write_text(commit)
        path = Path(folder) / self.path if self.path else Path(folder)
        if not path.exists():
            raise UserError(f"there is no {self.path} in it", where=self.uri, fix="check the path and the revision")
        return path

    def _told(self, error: Exception) -> UserError:
        from huggingface_hub import errors

        text = scrub(str(error).strip().split("\n")[0])[:300]
        if isinstance(error, errors.GatedRepoError):
            fix = "accept its terms on its page, and put a token into HF_TOKEN"
            return UserError("this repository is gated", where=self.uri, fix=fix)
        if isinstance(error, errors.RevisionNotFoundError):
            what = f"it has no revision {self.revision!r}"
            return UserError(what, where=self.uri, fix="check the branch, tag or commit")
        if isinstance(error, errors.RepositoryNotFoundError):
            fix = "check the name; a private one needs a token in HF_TOKEN"
            return UserError("there is no such repository", where=self.uri, fix=fix)
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            return UserError(f"access denied: {text}", where=self.uri, fix="check the token in HF_TOKEN")
        return TemporaryError(
            f"the hub does not answer: {text}", where=self.uri, fix="check the network, or HF_ENDPOINT"
        )


def open_repository(uri: str, kinds: tuple[str, ...]) -> Artifact:
    """See `artifact.open_artifact`."""
    repository = Repository.parse(uri)
    commit = repository.commit()
    path = repository.fetched(commit)
    root, files = outside_files(path)
    kind = outside_kind(uri, root.name if root.is_file() else "", sorted(files), kinds)
    return Artifact(uri, root, kind, repository.digest(commit), tuple(files))


def identify_repository(uri: str, kinds: tuple[str, ...]) -> str:  # noqa: ARG001
    """See `elsewhere.identify_remote`: nothing is fetched."""
    repository = Repository.parse(uri)
    return repository.digest(repository.commit())


def _hub(uri: str) -> Any:
    try:
        import huggingface_hub

        return huggingface_hub
    except ImportError:
        fix = "pip install 'microstages[hf]'"
        raise UserError("the driver of hf:// is not installed", where=uri, fix=fix) from None
