"""What a model may be set up with: addresses, headers and options that cannot work are found before a call. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from dafx_actors.transcript import Json

__all__ = [
    "address_mistakes",
    "endpoint_mistakes",
    "misplaced_options",
    "without_version",
]

_OPERATIONS = ("/chat/completions", "/completions", "/responses", "/embeddings", "/models")

_ELSEWHERE = {
    **dict.fromkeys(("extra_headers", "headers", "default_headers"), "give the model `headers=`"),
    **dict.fromkeys(("extra_query", "query", "default_query", "api_version"), "give the model `query=`"),
    **dict.fromkeys(("http_client", "proxies", "proxy", "verify"), "give the model `http_client=`"),
    **dict.fromkeys(("timeout", "request_timeout"), "give the model `timeout=`"),
    **dict.fromkeys(("max_retries", "num_retries"), "give the agent `retry=`"),
    **dict.fromkeys(
        ("api_key", "base_url", "azure_endpoint", "organization", "project"), "give it to the model itself"
    ),
    "extra_body": "give what is in it as options of their own",
    "stream": "whether an answer is streamed is not an agent's to say",
    "messages": "the messages are the thread's",
}
"""What is no parameter of the body: the provider's package takes some of it as arguments, so people try it."""


def misplaced_options(options: Mapping[str, Json]) -> Iterator[str]:
    """A sentence for each option that is not of the body of a call, or that asks for what cannot be given."""
    for name, value in options.items():
        if name in _ELSEWHERE:
            yield f"{name!r} is no option of a model call: {_ELSEWHERE[name]}."
        elif name == "n" and value not in {None, 1}:
            yield "'n' is no option of a model call: an agent has one answer."
        elif name == "model" and not (isinstance(value, str) and value.strip()):
            yield "The option 'model' is not the name of a model."


def address_mistakes(address: str, names: str) -> Iterator[str]:
    """A sentence for what is wrong with a base URL.

    Args:
        address: The URL.
        names: What it is called where it is set, such as "`base_url` (OPENAI_BASE_URL)".
    """
    if (unreadable := _unreadable(address, names)) is not None:
        yield unreadable
        return
    parts = urlsplit(address)
    path = parts.path.rstrip("/")
    ending = next((each for each in _OPERATIONS if path.endswith(each)), None)
    if ending:
        right = f"{_origin(address)}{path.removesuffix(ending)}"
        yield f"{names} goes up to and with `/v1`, and not on to `{ending}`. Set it to {right}."
    elif parts.query or parts.fragment:
        yield f"{names} ends before the `?`. Set it to {_origin(address)}{path}, and give the rest as `query=`."


def endpoint_mistakes(endpoint: str) -> Iterator[str]:
    """A sentence for what is wrong with an Azure OpenAI endpoint, such as a call's address from the portal."""
    names = "`endpoint` (AZURE_OPENAI_ENDPOINT)"
    if (unreadable := _unreadable(endpoint, names)) is not None:
        yield unreadable
        return
    parts = urlsplit(endpoint)
    found = re.search(r"/(openai|models|api/projects)(/|$)", parts.path)
    if found is None and not parts.query:
        return
    right = f"{_origin(endpoint)}{parts.path[: found.start()] if found else parts.path}".rstrip("/")
    said = f"{names} is the resource's address alone. Set it to {right}."
    if deployment := re.search(r"/deployments/([^/]+)", parts.path):
        said += f" The deployment {deployment[1]!r} goes to AZURE_OPENAI_CHAT_DEPLOYMENT_NAME."
    if "api-version=" in parts.query:
        said += " The version goes to AZURE_OPENAI_API_VERSION."
    if re.search(r"/openai/v1(/|$)", parts.path):
        said += (
            f" For its newer API, use OPENAI_BASE_URL={right}/openai/v1 with OPENAI_API_KEY and OPENAI_MODEL instead."
        )
    yield said


def _unreadable(address: str, names: str) -> str | None:
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        return f"{names} is no address, or has a port that there is not."
    if parts.scheme.lower() not in {"http", "https"} or not host:
        return f"{names} is no address of a server: it has no protocol such as https:// before the host's name."
    if port == 0 or re.search(r"[\x00-\x20\x7f]", address):
        return f"{names} is no address: it has a space, a line break or the port 0."
    return None


def without_version(address: str) -> bool:
    """Whether a base URL lacks what most servers want at its end: `/v1`."""
    return not re.search(r"/(v\d|openai|deployments)", urlsplit(address).path)


def _origin(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
