"""Which model an environment asks for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dafx_actors.errors import ConfigurationError, ModelNotConfigured
from dafx_actors.models.environment import DEFAULT_OPENAI_MODEL, model_from_environment
from dafx_actors.models.local import LocalModel
from dafx_actors.models.openai import DEFAULT_API_VERSION, AzureOpenAIChatModel, OpenAIChatModel

AZURE = {"AZURE_OPENAI_ENDPOINT": "https://r.openai.azure.com", "AZURE_OPENAI_CHAT_DEPLOYMENT_NAME": "gpt"}
OPENAI = {"OPENAI_API_KEY": "key"}


def test_azure_comes_first() -> None:
    """Azure, by its identity where there is no key."""
    model = model_from_environment({**AZURE, **OPENAI})
    assert isinstance(model, AzureOpenAIChatModel)
    assert (model.endpoint, model.model) == ("https://r.openai.azure.com", "gpt")
    assert (model.api_key, model.api_version) == (None, DEFAULT_API_VERSION)


def test_azure_by_key() -> None:
    """Azure with a key and a version; an agent's own name is the deployment's."""
    more = {"AZURE_OPENAI_API_KEY": "key", "AZURE_OPENAI_API_VERSION": "2099-01-01"}
    model = model_from_environment({**AZURE, **more}, "other")
    assert isinstance(model, AzureOpenAIChatModel)
    assert (model.model, model.api_key, model.api_version) == ("other", "key", "2099-01-01")


def test_openai() -> None:
    """OpenAI, and servers like it."""
    plain = model_from_environment(OPENAI)
    assert isinstance(plain, OpenAIChatModel)
    assert (plain.model, plain.base_url, plain.api_key) == (DEFAULT_OPENAI_MODEL, None, "key")
    other = model_from_environment({**OPENAI, "OPENAI_BASE_URL": "http://localhost:1/v1", "OPENAI_MODEL": "qwen"})
    assert isinstance(other, OpenAIChatModel)
    assert (other.model, other.base_url) == ("qwen", "http://localhost:1/v1")
    named = model_from_environment({**OPENAI, "OPENAI_MODEL": "qwen"}, "gpt-6-sol")
    assert isinstance(named, OpenAIChatModel)
    assert named.model == "gpt-6-sol"


def test_local() -> None:
    """The small model where nothing else is set; empty is not set."""
    pytest.importorskip("xllamacpp")
    assert isinstance(model_from_environment({}), LocalModel)
    assert isinstance(model_from_environment({"OPENAI_API_KEY": "", "AZURE_OPENAI_ENDPOINT": " "}), LocalModel)
    assert isinstance(model_from_environment({}, LocalModel.name), LocalModel)


@pytest.mark.parametrize(
    ("environ", "missing"),
    [
        ({"AZURE_OPENAI_ENDPOINT": "https://r", **OPENAI}, ["AZURE_OPENAI_CHAT_DEPLOYMENT_NAME is not"]),
        ({"AZURE_OPENAI_CHAT_DEPLOYMENT_NAME": "gpt", **OPENAI}, ["AZURE_OPENAI_ENDPOINT is not"]),
        ({"OPENAI_BASE_URL": "http://localhost/v1"}, ["OPENAI_API_KEY is not", "OPENAI_MODEL is not"]),
    ],
)
def test_half_set(environ: dict[str, str], missing: list[str]) -> None:
    """Half of a provider is a mistake, and no reason to take another one; all that is missing is named."""
    with pytest.raises(ConfigurationError) as raised:
        model_from_environment(environ)
    assert len(raised.value.mistakes) == len(missing)
    for mistake, words in zip(raised.value.mistakes, missing, strict=True):
        assert words in mistake


def test_a_name_stands_for_the_deployment() -> None:
    """An agent that names its model needs no name from the environment."""
    model = model_from_environment({"AZURE_OPENAI_ENDPOINT": "https://r"}, "gpt")
    assert isinstance(model, AzureOpenAIChatModel)
    assert model.model == "gpt"


def test_nothing_set() -> None:
    """The small model does not pass for another; the error lists what there is to choose from."""
    with pytest.raises(ModelNotConfigured) as raised:
        model_from_environment({}, "gpt-6-sol")
    for words in ("'gpt-6-sol'", "AZURE_OPENAI_ENDPOINT", "OPENAI_API_KEY", "dafx-actors[local]"):
        assert words in str(raised.value)


def test_nothing_heavy_is_imported() -> None:
    """Choosing a model imports neither `openai` nor azure-identity, pydantic or the local model's library."""
    program = """
import sys
from dafx_actors.models.environment import model_from_environment
model_from_environment({"AZURE_OPENAI_ENDPOINT": "https://r", "AZURE_OPENAI_CHAT_DEPLOYMENT_NAME": "gpt"})
model_from_environment({"OPENAI_API_KEY": "key"})
import dafx_actors.models.local
print(sorted({"openai", "azure.identity", "xllamacpp", "httpx2"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
