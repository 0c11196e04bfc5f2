"""S3 and stores that speak it (`s3://`): s3fs finds the credentials and the endpoint, aiobotocore moves the bytes."""

from __future__ import annotations

import hashlib
from typing import Any

from microstages.errors import TemporaryError, UserError
from microstages.remote import CONNECT, SILENCE, scrub
from microstages.storage import Entry

DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "403", "401",
          "TokenRefreshRequired", "AllAccessDisabled", "AccountProblem", "InvalidSecurity", "AuthFailure"}  # fmt: skip
MISSING = {"NoSuchKey", "404", "NotFound", "NoSuchUpload"}


def options() -> dict[str, Any]:
    """How s3fs is asked to connect: time-outs of ours, and no tries of its own (`persist` makes them)."""
    import fsspec

    own = dict(fsspec.config.conf.get("s3", {}).get("config_kwargs", {}))
    ours = {"connect_timeout": CONNECT, "read_timeout": SILENCE, "max_pool_connections": 64}
    return {"config_kwargs": {**ours, "retries": {"total_max_attempts": 1}, **own}}


class S3:
    """See `remote.Driver`."""

    def __init__(self, fs: Any) -> None:
        self.fs = fs

    async def ask(self, method: str, path: str, **values: Any) -> Any:
        """One request; the SDK's errors as Python's own."""
        from botocore.exceptions import ClientError, NoCredentialsError, PartialCredentialsError

        bucket, key, _ = self.fs.split_path(path)
        await self.fs.set_session()
        function = getattr(await self.fs.get_s3(bucket), method)
        if method not in ("list_objects_v2", "delete_objects", "list_multipart_uploads"):
            values["Key"] = key
        try:
            return await function(**self.fs._get_s3_method_kwargs(function, Bucket=bucket, **values))
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise PermissionError(scrub(str(error))) from None
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if code == "NoSuchBucket":
                raise _NoBucketError(bucket) from None
            if code in MISSING:
                raise FileNotFoundError(path) from None
            if code in DENIED or status in (401, 403):
                raise PermissionError(scrub(str(error))) from None
            if code == "PreconditionFailed" or status == 412:
                if "IfMatch" in values:
                    fix = "wait until it is written, then run again"
                    raise UserError("it changed while it was read", fix=fix) from None
                raise FileExistsError(path) from None
            if code in ("InvalidBucketName", "PermanentRedirect", "KeyTooLongError", "EntityTooLarge"):
                raise UserError(f"the store refuses: {scrub(str(error))}", fix="check the address") from None
            raise TemporaryError(f"the store fails: {scrub(str(error))}", fix="try again") from None

    async def read(self, path: str, start: int = 0, length: int | None = None, tag: str = "") -> bytes:
        more = {"IfMatch": f'"{tag}"'} if tag else {}
        if length is not None:
            more["Range"] = f"bytes={start}-{start + length - 1}"
        answer = await self.ask("get_object", path, **more)
        async with answer["Body"] as body:
            data = bytes(await body.read())
        wanted = answer["ContentLength"] if length is None else length
        if len(data) != wanted:
            raise TemporaryError(f"{len(data)} bytes came, not {wanted}", fix="try again")
        return data

    async def write(self, path: str, data: bytes, create: bool = False) -> None:
        try:
            await self.ask("put_object", path, Body=data, **({"IfNoneMatch": "*"} if create else {}))
        except _NoBucketError as error:
            raise error.told() from None

    async def _pages(self, path: str, prefix: str, **more: Any) -> list[dict[str, Any]]:
        pages: list[dict[str, Any]] = []
        token: dict[str, str] = {}
        try:
            while True:
                pages.append(await self.ask("list_objects_v2", path, Prefix=prefix, **token, **more))
                if not pages[-1].get("IsTruncated"):
                    return pages
                token = {"ContinuationToken": pages[-1]["NextContinuationToken"]}
        except FileNotFoundError:
            return pages

    async def entries(self, path: str) -> dict[str, Entry]:
        _, prefix, _ = self.fs.split_path(path)
        prefix = prefix.rstrip("/")
        found = {}
        for page in await self._pages(path, prefix):
            for item in page.get("Contents", []):
                key = item["Key"]
                if key.endswith("/"):  # a folder that a browser made
                    continue
                if not prefix or key == prefix or key.startswith(prefix + "/"):
                    name = key.removeprefix(prefix).lstrip("/") if prefix else key
                    tag, written = str(item.get("ETag") or "").strip('"'), item.get("LastModified")
                    found[name] = Entry(int(item["Size"]), tag, written.timestamp() if written else None)
        return found

    async def folders(self, path: str) -> list[str]:
        _, prefix, _ = self.fs.split_path(path)
        prefix = prefix.rstrip("/") + "/" if prefix else ""
        pages = await self._pages(path, prefix, Delimiter="/")
        return sorted(
            p["Prefix"].removeprefix(prefix).rstrip("/") for page in pages for p in page.get("CommonPrefixes", [])
        )

    async def remove(self, path: str, names: list[str]) -> None:
        _, prefix, _ = self.fs.split_path(path)
        keys = [f"{prefix.rstrip('/')}/{name}".lstrip("/") if name else prefix for name in names]
        for at in range(0, len(keys), 1000):
            objects = [{"Key": key} for key in keys[at : at + 1000]]
            try:
                answer = await self.ask("delete_objects", path, Delete={"Objects": objects, "Quiet": True})
            except _NoBucketError:
                return
            if errors := answer.get("Errors"):
                code, text = errors[0].get("Code", ""), errors[0].get("Message", "")
                if code in DENIED:
                    raise PermissionError(f"{code}: {text}")
                raise TemporaryError(f"the store fails: {code}: {text}", fix="try again")

    async def upload(self, path: str, size: int, resume: bool) -> _Upload:  # noqa: ARG002
        return await _Upload(self, path).begun(resume)


class _Upload:
    """A multipart upload; one of the same file that was cut off is continued, part by part, by their MD5s."""

    def __init__(self, s3: S3, path: str) -> None:
        self.s3, self.path, self.id = s3, path, ""
        self.parts: dict[int, str] = {}
        self.there: dict[int, str] = {}

    async def begun(self, resume: bool) -> _Upload:
        _, key, _ = self.s3.fs.split_path(self.path)
        try:
            found = []
            if resume:
                found = (await self.s3.ask("list_multipart_uploads", self.path, Prefix=key)).get("Uploads", [])
            if same := [u for u in found if u["Key"] == key]:
                self.id = max(same, key=lambda u: u["Initiated"])["UploadId"]
                more: dict[str, Any] = {}
                while True:
                    page = await self.s3.ask("list_parts", self.path, UploadId=self.id, **more)
                    self.there |= {p["PartNumber"]: p["ETag"].strip('"') for p in page.get("Parts", [])}
                    if not page.get("IsTruncated"):
                        break
                    more = {"PartNumberMarker": page["NextPartNumberMarker"]}
            else:
                self.id = (await self.s3.ask("create_multipart_upload", self.path))["UploadId"]
        except _NoBucketError as error:
            raise error.told() from None
        return self

    async def part(self, number: int, data: bytes) -> None:
        tag = self.there.get(number + 1, "")
        if not tag or tag != hashlib.md5(data, usedforsecurity=False).hexdigest():
            answer = await self.s3.ask("upload_part", self.path, UploadId=self.id, PartNumber=number + 1, Body=data)
            tag = answer["ETag"]
        self.parts[number + 1] = tag

    async def finish(self) -> None:
        parts = [{"PartNumber": n, "ETag": self.parts[n]} for n in sorted(self.parts)]
        try:
            await self.s3.ask(
                "complete_multipart_upload", self.path, UploadId=self.id, MultipartUpload={"Parts": parts}
            )
        except FileNotFoundError:  # it was completed, and the answer got lost
            await self.s3.ask("head_object", self.path)

    async def abort(self) -> None:
        await self.s3.ask("abort_multipart_upload", self.path, UploadId=self.id)


class _NoBucketError(FileNotFoundError):
    def told(self) -> UserError:
        name = str(self.args[0])
        return UserError(f"there is no bucket {name!r}", fix="create it first, or check the name")
