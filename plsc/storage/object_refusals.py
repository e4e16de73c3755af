"""Refusals of object stores as errors of plsc: which of them pass, and what to do about the others."""

from __future__ import annotations

import errno
import re

from plsc.errors import one_line
from plsc.storage.base import Storage, StorageError, StorageUnavailableError, missing, not_utf8, place_of

S3, GOOGLE, AZURE = ("s3", "s3a"), ("gs", "gcs"), ("abfs", "abfss", "az")  # schemes

_FINAL_NUMBERS = {"EINVAL", "ENAMETOOLONG", "EMSGSIZE", "EPERM", "ENOSYS", "ENOSPC", "EDQUOT", "EREMCHG", "EROFS"}
_MISUNDERSTOOD = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)
_NO_CREDENTIALS = (
    "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "CredentialRetrievalError",
    "TokenRetrievalError", "DefaultCredentialsError", "RefreshError", "ClientAuthenticationError", "NoAuthTokenError",
)  # fmt: skip
HINTS = {
    "AccessDenied|Forbidden|^403$": "ask the owner of the bucket for the right, or check which credentials are in use",
    "InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|ExpiredToken|TokenRefresh": "check the credentials",
    "NoSuchBucket": "make the bucket, or check its name",
    "PermanentRedirect|AuthorizationHeaderMalformed|^30[17]$": "check the region and the endpoint",
    "QuotaExceeded|ENOSPC": "make room there",
}
# Codes of S3 for failures that pass, in an answer that lists what happened to each of several files.
PASSING = ("InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown")


def code_of(problem: BaseException) -> str:
    """Returns the server's code of an error of S3 or HTTP; an empty text if it has none."""
    response = getattr(problem.__cause__ or problem, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    number = getattr(problem, "status_code", None) or getattr(problem, "code", None)
    return str(number) if isinstance(number, int) else ""


def words_of(problem: BaseException) -> str:
    """Returns what went wrong on one line. It holds no address of a request, which may be signed."""
    text = one_line(getattr(problem, "strerror", None) or str(problem)) or type(problem).__name__
    code = code_of(problem)
    text = re.sub(r"https?://([^\s/?\"']*)[^\s\"']*", r"\1", text)
    return text if not code or code in text else f"{code}: {text}"


def object_error(store: Storage, path: str, problem: Exception) -> StorageError:
    """Returns the error for an exception of a file system: one that may pass, or one that does not."""
    where, code, words = place_of(store, path or "/"), code_of(problem), words_of(problem)
    kind = type(problem).__name__
    scheme = store.name.partition("://")[0]
    hint = next((f"; {hint}" for pattern, hint in HINTS.items() if re.search(pattern, f"{code or words}")), "")
    if kind in _NO_CREDENTIALS:
        return StorageError(f"{where}: no credentials ({words}); {login(scheme)}")
    if code == "NoSuchUpload":  # of a server that has lost it; the next attempt begins again
        return StorageUnavailableError(f"{where}: {words}")
    if "not fork-safe" in words:  # the thread that serves its requests is in the other process
        return StorageError(f"{where}: was opened before this process was forked; open it in the process that uses it")
    if isinstance(problem, RecursionError):  # botocore follows redirects to other regions
        return StorageError(f"{where}: the server redirects without end; check the region and the endpoint")
    if isinstance(problem, FileNotFoundError):
        return StorageError(f"{where}: {words}{hint}") if code == "NoSuchBucket" else missing(store, path)
    if isinstance(problem, (FileExistsError, NotADirectoryError, IsADirectoryError)):
        return StorageError(f"{where}: a file stands where a folder should be, or a folder where a file should be")
    if isinstance(problem, PermissionError):
        return StorageError(f"{where}: {words}{hint or '; ' + HINTS['AccessDenied|Forbidden|^403$']}")
    if isinstance(problem, UnicodeEncodeError):
        return not_utf8(store, path)
    if isinstance(problem, _MISUNDERSTOOD) or kind in ("ParamValidationError", "ResponseParserError"):
        reason = f"the server does not answer as expected ({words})"
        return StorageError(f"{where}: {reason}; check the address and the endpoint")
    is_final = errno.errorcode.get(getattr(problem, "errno", None) or 0) in _FINAL_NUMBERS
    if is_final or re.fullmatch("4(?!08|29)[0-9][0-9]", code):
        return StorageError(f"{where}: {words}{hint}")
    return StorageUnavailableError(f"{where}: {words}")


def login(scheme: str) -> str:
    """Returns where the credentials of a store come from."""
    if scheme in S3:
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or give fs_ugi='key,secret'"
    if scheme in GOOGLE:
        return "set GOOGLE_APPLICATION_CREDENTIALS"
    if scheme in AZURE:
        return "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or give fs_ugi='account,key'"
    return f"fsspec reads FSSPEC_{scheme.upper()}_<OPTION> and ~/.config/fsspec"
