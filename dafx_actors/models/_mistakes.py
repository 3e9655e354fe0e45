"""Errors of the `openai` package and of HTTP below it, as our own: failed calls, and mistakes of the environment.

A proxy, a certificate or an address that is wrong stays wrong however often it is tried, so it is a
`ConfigurationError` that names the variable. None of these holds a variable's value: a proxy's may have a password.
"""

from __future__ import annotations

import importlib.util
import json
import os
import ssl
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from dafx_actors._raised import safe, text_of
from dafx_actors._secrets import shown_address
from dafx_actors.errors import ConfigurationError, ModelError
from dafx_actors.models._failures import failure
from dafx_actors.models._settings import without_version

if TYPE_CHECKING:
    from openai import APIStatusError

__all__ = ["environment_mistakes", "typed_failures", "wrong_base"]

_PROXY_SCHEMES = {"http", "https", "socks5", "socks5h"}
_HERE = {"localhost", "127.0.0.1", "::1"}
_NOT_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "HTTP_REQUEST"}


# --- before a call ---------------------------------------------------------------------------------------------------


def environment_mistakes() -> Iterator[str]:
    """A sentence for each variable that no HTTP client can be made with."""
    proxies = getproxies()
    bypassed = "*" in [host.strip() for host in proxies.get("no", "").split(",")]
    for scheme in () if bypassed else ("http", "https", "all"):
        if (value := proxies.get(scheme)) and (wrong := _wrong_proxy(value)):
            yield f"{_variable(scheme)} {wrong}"
    file, directory = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file and (wrong := _wrong_certificates(file)):
        yield f"SSL_CERT_FILE {wrong}"
    elif not file and directory and not Path(directory).is_dir():
        yield "SSL_CERT_DIR names no directory. Set it to one with certificates, or unset it."


def _wrong_proxy(value: str) -> str | None:
    whole = value if "://" in value else f"http://{value}"
    try:
        parts = urlsplit(whole)
        host, port, scheme = parts.hostname, parts.port, parts.scheme.lower()
    except ValueError:
        return "holds no address of a proxy, such as http://proxy.example:3128."
    if scheme not in _PROXY_SCHEMES:
        return f"begins with {scheme}://, which no proxy here speaks. Begin it with http://, https:// or socks5://."
    if not host or port == 0 or any(character.isspace() for character in value):
        return "holds no address of a proxy, such as http://proxy.example:3128."
    if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        return "names a SOCKS proxy, which needs the package socksio: pip install socksio"
    return None


def _wrong_certificates(file: str) -> str | None:
    try:
        ssl.create_default_context(cafile=file)
    except (OSError, ValueError) as error:  # `ssl.SSLError` is an OSError
        why = type(error).__name__ if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None) or error
        return f"names no file of certificates that can be read ({why}). Set it to one in PEM form, or unset it."
    return None


def _variable(scheme: str) -> str:
    """The variable that a proxy came from; by its usual name where it is the system's setting."""
    names = (f"{scheme}_proxy", f"{scheme}_proxy".upper())
    return next((name for name in names if os.environ.get(name)), names[1])


def _proxy_of(address: str, trust_env: bool) -> str | None:
    """The variable whose proxy calls to `address` go through."""
    parts = urlsplit(address)
    if not trust_env or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return next((_variable(scheme) for scheme in (parts.scheme, "all") if getproxies().get(scheme)), None)


# --- around a call ---------------------------------------------------------------------------------------------------


def wrong_base(base: str, found: str) -> ConfigurationError:
    """The mistake of a base URL without `/v1`, where the server has `found` in place of chat completions."""
    base = shown_address(base).rstrip("/")
    return ConfigurationError(
        f"There are no chat completions at {base}/chat/completions ({found[:200]}). The base URL has no `/v1` at its "
        f"end: set `base_url`, or OPENAI_BASE_URL, to {base}/v1."
    )


@contextmanager
def typed_failures(base: str, *, trust_env: bool = True, answering: bool = False) -> Generator[None]:
    """Make a `ModelError` of what the package raises. Cancellation passes through untouched.

    Args:
        base: The client's base URL.
        trust_env: Whether the environment's proxies count.
        answering: Whether an answer has begun, so that a lost connection is an answer that was cut.
    """
    from httpx2 import InvalidURL, RequestError, TimeoutException
    from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

    now = datetime.now(UTC)
    try:
        yield
    except APIStatusError as error:
        raise _refused(error, base, trust_env, now) from safe(error)
    except (APITimeoutError, TimeoutException) as error:
        raise ModelError(kind="timeout", message="The model did not answer in time.", data=_at(base)) from safe(error)
    except (APIConnectionError, RequestError) as error:
        raise _lost(error, base, trust_env, answering) from safe(error)
    except APIError as error:  # an error object inside a stream
        raise failure(
            None, error.body, message=error.message, headers={}, now=now, address=shown_address(base)
        ) from safe(error)
    except (InvalidURL, UnicodeEncodeError, OverflowError) as error:
        raise ConfigurationError((f"The model's address or key cannot be used: {text_of(error)}",)) from safe(error)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:  # the package reads a stream with `json.loads`
        raise ModelError(
            kind="bad_response", message=f"The model's server sent broken JSON: {text_of(error)}", data=_at(base)
        ) from safe(error)


def _at(address: str) -> dict[str, str]:
    return {"address": shown_address(address)}


def _refused(error: APIStatusError, base: str, trust_env: bool, now: datetime) -> ModelError | ConfigurationError:
    response = error.response
    address = shown_address(str(response.request.url))
    try:
        body = json.loads(response.text)
    except (ValueError, RecursionError):
        body = response.text
    variable = _proxy_of(address, trust_env)
    if response.status_code == 407 and variable:
        return _proxy_refuses(variable)
    message = response.reason_phrase or "The server said nothing more."
    failed = failure(response.status_code, body, message=message, headers=response.headers, now=now, address=address)
    if variable and urlsplit(address).hostname in _HERE:
        failed.message += f" (through the proxy of {variable}; NO_PROXY names hosts that are to be asked directly)"
    if response.status_code in {404, 405} and without_version(base) and "model" not in failed.message.lower():
        return wrong_base(base, f"HTTP {response.status_code}: {failed.message}")
    return failed


def _proxy_refuses(variable: str) -> ConfigurationError:
    return ConfigurationError(
        f"The proxy of {variable} wants a user and a password (HTTP 407): {variable}=http://user:password@host:port."
    )


def _lost(error: Exception, base: str, trust_env: bool, answering: bool) -> ModelError | ConfigurationError:
    from httpx2 import ProxyError

    causes = list(_causes(error))
    variable = _proxy_of(base, trust_env)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ConfigurationError(
                f"The certificate of {shown_address(base)} is not trusted ({cause.verify_message}). Set SSL_CERT_FILE "
                "to a file with the certificate of who issued it, such as your company's."
            )
        if isinstance(cause, ssl.SSLError) and cause.reason in _NOT_TLS:
            return ConfigurationError(
                f"The server at {shown_address(base)} does not speak TLS. Begin `base_url` (OPENAI_BASE_URL), or "
                "`endpoint` (AZURE_OPENAI_ENDPOINT), with http://, or set the right port."
            )
        if isinstance(cause, ProxyError) and variable and "407" in str(cause):
            return _proxy_refuses(variable)
    detail = f"{text_of(error)} ({text_of(error.__cause__)})" if error.__cause__ else text_of(error)
    if variable:
        detail += f" (through the proxy of {variable})"
    if answering:
        return ModelError(kind="bad_response", message=f"The answer was cut: {detail}", data=_at(base))
    return ModelError(kind="connection", message=detail, data=_at(base))


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    for _ in range(20):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or seen.__context__
