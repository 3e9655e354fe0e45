"""Which model the environment asks for."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping

from dafx_actors.errors import ConfigurationError, ModelNotConfigured
from dafx_actors.models import Model, _weights
from dafx_actors.models.openai import DEFAULT_API_VERSION, AzureOpenAIChatModel, OpenAIChatModel

__all__ = ["DEFAULT_OPENAI_MODEL", "model_from_environment"]

DEFAULT_OPENAI_MODEL = "gpt-5-mini"
"""What is asked of OpenAI itself, where neither the agent nor OPENAI_MODEL names a model."""


def model_from_environment(environ: Mapping[str, str], name: str | None = None) -> Model:
    """The first of these that is set up in `environ`, which is `os.environ` or stands for it; empty is not set.

    1. Azure OpenAI: AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_CHAT_DEPLOYMENT_NAME, with AZURE_OPENAI_API_KEY or else by
       azure-identity; AZURE_OPENAI_API_VERSION if need be.
    2. OpenAI, or a server like it: OPENAI_API_KEY, with OPENAI_MODEL, and OPENAI_BASE_URL for such a server.
    3. The small model on this machine's CPU, if its extra is installed.

    `name` (an agent's `model="..."`) takes the place of AZURE_OPENAI_CHAT_DEPLOYMENT_NAME and OPENAI_MODEL. The small
    model does not stand in for a model with another name.

    Raises:
        ConfigurationError: Half of a provider's variables are set; says which are missing.
        ModelNotConfigured: Nothing is set up; lists these choices.
    """
    settings = {variable: value.strip() for variable, value in environ.items() if value.strip()}
    _check_whole(settings, name)
    if endpoint := settings.get("AZURE_OPENAI_ENDPOINT"):
        return AzureOpenAIChatModel(
            name or settings["AZURE_OPENAI_CHAT_DEPLOYMENT_NAME"],
            endpoint=endpoint,
            api_key=settings.get("AZURE_OPENAI_API_KEY"),
            api_version=settings.get("AZURE_OPENAI_API_VERSION", DEFAULT_API_VERSION),
        )
    if api_key := settings.get("OPENAI_API_KEY"):
        model = name or settings.get("OPENAI_MODEL", DEFAULT_OPENAI_MODEL)
        return OpenAIChatModel(model, base_url=settings.get("OPENAI_BASE_URL"), api_key=api_key)
    if name in {None, _weights.NAME} and importlib.util.find_spec("xllamacpp") is not None:
        # Here, because `python -m dafx_actors.models.local` must not find that the package has imported it already.
        from dafx_actors.models.local import LocalModel

        return LocalModel()
    raise ModelNotConfigured((_choices(name),))


def _check_whole(settings: Mapping[str, str], name: str | None) -> None:
    """Raise `ConfigurationError` for a provider that is half set up: whoever began it does not want another one."""
    if missing := tuple(_missing(settings, name)):
        raise ConfigurationError(missing)


def _missing(settings: Mapping[str, str], name: str | None) -> Iterator[str]:
    deployment = name or settings.get("AZURE_OPENAI_CHAT_DEPLOYMENT_NAME")
    if "AZURE_OPENAI_ENDPOINT" in settings:
        if not deployment:
            yield (
                "AZURE_OPENAI_ENDPOINT is set, but AZURE_OPENAI_CHAT_DEPLOYMENT_NAME is not. Set it to the name of "
                "your chat model's deployment, or give the agent a `model`."
            )
    elif "AZURE_OPENAI_CHAT_DEPLOYMENT_NAME" in settings:
        yield (
            "AZURE_OPENAI_CHAT_DEPLOYMENT_NAME is set, but AZURE_OPENAI_ENDPOINT is not. Set it to your resource's "
            "address, such as https://my-resource.openai.azure.com."
        )
    elif "OPENAI_BASE_URL" in settings:
        if "OPENAI_API_KEY" not in settings:
            yield "OPENAI_BASE_URL is set, but OPENAI_API_KEY is not. A server that wants no key takes any text."
        if not name and "OPENAI_MODEL" not in settings:
            yield "OPENAI_BASE_URL is set, but OPENAI_MODEL is not. Set it to a model that this server has."


def _choices(name: str | None) -> str:
    wanted = f"The agent asks for the model {name!r}, but no provider" if name else "No model"
    return (
        f"{wanted} is configured. Set one of:\n"
        "  - Azure OpenAI: AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_CHAT_DEPLOYMENT_NAME, with AZURE_OPENAI_API_KEY or "
        "signed in, for example with `az login`\n"
        "  - OpenAI: OPENAI_API_KEY, with OPENAI_MODEL, and OPENAI_BASE_URL for another server of its kind\n"
        f"  - a small model on this machine's CPU: pip install 'dafx-actors[local]'; its name is {_weights.NAME}"
    )
