"""Create if absent on an object store: pyarrow's file systems overwrite, obstore asks the server not to."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

from grokscale.errors import GrokscaleError


def open_bucket(root: str) -> Any:
    """The bucket of a root such as s3://bucket/folder?endpoint_override=host:9000&scheme=http&region=us-east-1.

    Credentials are those of the URI or of the environment, as for pyarrow.
    Raises GrokscaleError where obstore is missing or the root is no such URI.
    """
    uri = urlsplit(root)
    if uri.scheme not in ("s3", "gs", "gcs"):
        raise GrokscaleError(
            f"{root}: only one of several compactions may win, which needs a place that can create a file only if "
            "it is absent; allowed: a folder, s3://bucket/folder, gs://bucket/folder"
        )
    try:
        from obstore.store import GCSStore, S3Store
    except ImportError as error:
        raise GrokscaleError(f"{root}: compacting this needs obstore: pip install 'grokscale[s3]'") from error
    bucket = uri.hostname or ""
    if uri.scheme != "s3":
        return GCSStore(bucket)
    given = {name: values[-1] for name, values in parse_qs(uri.query).items()}
    config: dict[str, Any] = {"virtual_hosted_style_request": False}
    if "region" in given:
        config["region"] = given["region"]
    if "endpoint_override" in given:
        config["endpoint"] = f"{given.get('scheme', 'https')}://{given['endpoint_override']}"
    if uri.username:
        config |= {"access_key_id": uri.username, "secret_access_key": uri.password or ""}
    return S3Store(bucket, client_options={"allow_http": given.get("scheme") == "http"}, **config)


def create(bucket: Any, key: str, data: bytes) -> bool:
    """Puts an object unless there is one of this key: of several writers exactly one gets True."""
    from obstore.exceptions import AlreadyExistsError, BaseError

    try:
        bucket.put(key, data, mode="create")
    except AlreadyExistsError:
        return False
    except BaseError as error:
        raise OSError(str(error).splitlines()[0]) from error
    return True
