"""Types to JSON schemas, and arguments that are held to them, with pydantic.

pydantic knows neither attrs classes nor, before Python 3.12, the TypedDict of `typing`. Where it would meet one it is
given a *mirror*: a class of the same fields that it does know, and a function that makes the real value of what was
read. Imported when the first schema is made: pydantic takes longer to import than all of this package.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from enum import Enum
from typing import Any, Literal, TypeAlias, cast

import attrs
import typing_extensions
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    RootModel,
    TypeAdapter,
    ValidationError,
)
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaWarningKind
from pydantic_core import CoreSchema, PydanticSerializationError, core_schema, to_jsonable_python

from dafx_actors._json.forms import dump_bytes, load_bytes_of_arguments
from dafx_actors._json.shapes import cut, shown
from dafx_actors.transcript import Json

NoSchema = (PydanticSchemaGenerationError, PydanticUserError, NameError, TypeError)
"""What is raised where no schema can be made."""
NoJson: tuple[type[Exception], ...] = (PydanticSerializationError, ValueError)
"""What is raised where pydantic knows no JSON of a value."""
_MOST_CLAUSES = 20
"""Mistakes that a model is told at once."""


def schema_of(annotation: Any) -> dict[str, Json]:
    """The JSON schema of a type.

    Raises:
        NoSchema: One of them, where it has none.
    """
    schema = TypeAdapter(_readable(annotation)).json_schema(schema_generator=_Generator)
    reference = schema.pop("$ref", None)
    if reference is None:
        return schema
    # Providers want to see at the top what kind of value it is. A class that holds itself stays a definition, too.
    definitions = schema.pop("$defs")
    name = reference.removeprefix("#/$defs/")
    schema = {**definitions[name], **schema}
    if json.dumps(reference) not in json.dumps([schema, definitions]):
        del definitions[name]
    return {"$defs": definitions, **schema} if definitions else schema


def load(value: Json, cls: Any) -> Any:
    """Make a pydantic model, or a value that JSON writes as text, of JSON.

    Raises:
        ValidationError: It does not fit.
    """
    if _is_model(cls) and not _needs_mirror(cls, set()):
        return cls.model_validate(value)
    return _adapter(cls).validate_json(json.dumps(value), strict=True)


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(_readable(cls))


def dump(value: Any) -> Json:
    """JSON of a value that is written as text.

    Raises:
        NoJson: One of them, where pydantic knows none.
    """
    return to_jsonable_python(value, bytes_mode="base64")


class Arguments:
    """The parameters of a function, as one JSON object that takes no other keys."""

    def __init__(self, parameters: Mapping[str, Any], required: frozenset[str], descriptions: Mapping[str, str]):
        """Take the types of the parameters by name, those without a default, and what is known about them.

        Raises:
            NoSchema: One of them, where a parameter has none.
        """
        fields = {
            name: _optional(_described(annotation, descriptions.get(name)), name not in required)
            for name, annotation in parameters.items()
        }
        kind = _typed_dict("Arguments", fields)
        kind.__pydantic_config__ = ConfigDict(extra="forbid")
        self.names = tuple(parameters)
        self._adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(kind)
        self.schema = self._adapter.json_schema(schema_generator=_ShortGenerator)
        del self.schema["title"]

    def load(self, arguments: Mapping[str, Json]) -> tuple[dict[str, Any], list[str]]:
        """The values by name, or what is wrong with the arguments, a clause for each mistake."""
        try:
            text = json.dumps(_whole(arguments), allow_nan=False)
        except (ValueError, RecursionError) as error:
            return {}, [cut(f"JSON cannot hold them: {error}")]
        try:
            # As JSON, where a date is text and a tuple is an array; strict, so that "3" is no number.
            return self._adapter.validate_json(text, strict=True), []
        except ValidationError as error:
            clauses = [cut(clause) for clause in _clauses(error, arguments)]
            more = len(clauses) - _MOST_CLAUSES
            return {}, [*clauses[:_MOST_CLAUSES], *([f"and {more} more"] if more > 0 else [])]


def _whole(value: Json) -> Json:
    """With 3 for 3.0, which is an integer to a schema, but not to pydantic. To a parameter that is a float both are."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _whole(item) for key, item in cast("Mapping[str, Json]", value).items()}
    if isinstance(value, list):
        return [_whole(item) for item in cast("list[Json]", value)]
    return value


class _Generator(GenerateJsonSchema):
    # A default that JSON cannot hold is left out; nobody can do anything about a warning.
    ignored_warning_kinds: set[JsonSchemaWarningKind] = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 - pydantic's way


class _ShortGenerator(_Generator):
    """Without a title for each field: it repeats the name, and the model pays for it by the token."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


# --- What is wrong with arguments ---------------------------------------------------------------------------------


def _clauses(error: ValidationError, arguments: Mapping[str, Json]) -> list[str]:
    """A clause for each place, with all that pydantic says of it: a union has a mistake for each of its members."""
    found: dict[str, list[str]] = {}
    for each in error.errors(include_url=False, include_context=False):
        place = _path(each["loc"], arguments, each["type"] == "missing")
        said = _CLAUSES.get(each["type"]) or f"{_lowered(each['msg'])}, found {shown(each['input'])}"
        if said not in found.setdefault(place, []):
            found[place].append(said)
    return [f"`{place}`: {', or '.join(said)}" if place else ", or ".join(said) for place, said in found.items()]


_CLAUSES = {
    "missing": "is missing",
    "extra_forbidden": "is not known",
    "unexpected_keyword_argument": "is not known",  # that of a dataclass
}


def _lowered(message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message[:1].lower() + message[1:] if re.match("[A-Z][a-z]+ (input )?should ", message) else message


def _path(location: tuple[int | str, ...], value: Any, to_missing: bool) -> str:
    """Where in the arguments it is. pydantic also names the members of unions on the way, which are no places."""
    path = ""
    for index, step in enumerate(location):
        last = index == len(location) - 1
        if isinstance(value, Mapping) and isinstance(step, str) and (step in value or (last and to_missing)):
            path += f".{step}" if path else step
            value = cast("Mapping[str, Any]", value).get(step)
        elif isinstance(value, list) and isinstance(step, int):
            path += f"[{step}]"
            value = dict(enumerate(cast("list[Any]", value))).get(step)
    return path


# --- Mirrors ------------------------------------------------------------------------------------------------------

_Made: TypeAlias = tuple[Any, Callable[[Any], Any]]
_Left: Literal["left"] = "left"


@attrs.frozen
class _Mirrored:
    """Beside a class in `Annotated`: pydantic reads its mirror. Made late, since classes may hold each other."""

    kind: Any
    """The class, or a generic one with its arguments."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        mirror, make = _mirror(self.kind)
        return core_schema.no_info_after_validator_function(make, handler.generate_schema(mirror))


_BYTES = (bytes, bytearray, memoryview)


@attrs.frozen
class _Base64:
    """Beside a kind of bytes in `Annotated`: JSON has them as base64, where pydantic would take any text."""

    kind: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def load(text: str) -> Any:
            return self.kind(load_bytes_of_arguments(text))

        return core_schema.json_or_python_schema(
            json_schema=core_schema.no_info_after_validator_function(load, core_schema.str_schema()),
            python_schema=core_schema.is_instance_schema(self.kind),
            serialization=core_schema.plain_serializer_function_ser_schema(dump_bytes, when_used="json"),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "contentEncoding": "base64"}


@attrs.frozen
class _Exact:
    """Beside a choice of numbers in `Annotated`: to pydantic `true` is 1, which to JSON and to a schema it is not."""

    choices: tuple[Any, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: Any) -> Any:
            same = [choice for choice in self.choices if choice == value]
            if same and not any(isinstance(value, bool) == isinstance(choice, bool) for choice in same):
                raise ValueError(f"is one of {', '.join(map(repr, self.choices))}, found {shown(value)}")
            return value

        return core_schema.no_info_before_validator_function(check, handler(source))


def _numbers_among(annotation: Any) -> tuple[Any, ...]:
    """The choices of a `Literal` or an enum, if there are numbers or booleans among them."""
    choices: tuple[Any, ...] = ()
    if typing.get_origin(annotation) is typing.Literal:
        choices = tuple(each.value if isinstance(each, Enum) else each for each in typing.get_args(annotation))
    elif isinstance(annotation, type) and issubclass(annotation, Enum):
        choices = tuple(each.value for each in annotation)
    return choices if any(isinstance(choice, int) for choice in choices) else ()


@functools.cache
def fields_of_bytes(model: type) -> Mapping[str, str]:
    """Fields of a model's class in which pydantic would write bytes as text, each with its name in JSON."""
    if not _is_model(model) or issubclass(model, RootModel):
        return {}
    cls = cast("Any", model)
    if cls.__pydantic_decorators__.model_serializers:
        return {}
    told = {name for each in cls.__pydantic_decorators__.field_serializers.values() for name in each.info.fields}
    by_alias = cls.model_config.get("serialize_by_alias")
    return {
        name: (by_alias and field.serialization_alias) or name
        for name, field in cls.model_fields.items()
        if not field.exclude
        and name not in told
        and not any(hasattr(note, "return_type") for note in field.metadata)  # serializers in `Annotated`
        and _holds_bytes(field.rebuild_annotation(), set())
    }


def _holds_bytes(annotation: Any, seen: set[Any]) -> bool:
    if annotation in _BYTES:
        return True
    if typing.get_origin(annotation) is typing.Annotated and any(
        hasattr(note, "encoder") for note in annotation.__metadata__
    ):
        return False
    if annotation in seen or typing.get_origin(annotation) is typing.Literal:
        return False
    seen = seen | {annotation}
    if any(_holds_bytes(argument, seen) for argument in typing.get_args(annotation)):
        return True
    if supertype := _behind(annotation):
        return _holds_bytes(supertype, seen)
    return _has_fields(annotation) and any(_holds_bytes(hint, seen) for hint in _hints(annotation).values())


def _readable(annotation: Any) -> Any:
    """`annotation` with mirrors where pydantic needs them."""
    if not _needs_mirror(annotation, set()):
        return annotation
    if annotation in _BYTES:
        return typing.Annotated[annotation, _Base64(annotation)]
    if numbers := _numbers_among(annotation):
        return typing.Annotated[annotation, _Exact(numbers)]
    if supertype := _behind(annotation):
        return _readable(supertype)
    if _has_fields(annotation):
        return typing.Annotated[annotation, _Mirrored(annotation)]
    arguments = tuple(_readable(argument) for argument in typing.get_args(annotation))
    origin: Any = typing.get_origin(annotation)
    if origin is typing.Union or origin is types.UnionType:
        return cast("Any", typing.Union)[arguments]
    if origin is typing.Annotated:
        return _annotated(arguments[0], tuple(_as_field(note) for note in annotation.__metadata__))
    return origin[arguments[0] if len(arguments) == 1 else arguments]


def _needs_mirror(annotation: Any, seen: set[Any]) -> bool:
    """Whether pydantic would meet something in it that it does not know."""
    origin = typing.get_origin(annotation)
    if _numbers_among(annotation):
        return True
    if origin is typing.Literal:
        return False
    if annotation in _BYTES:
        return True
    if origin is typing.Annotated and any(hasattr(note, "encoder") for note in annotation.__metadata__):
        return False  # pydantic's own types of bytes, which say what they are as text
    if origin is typing.Annotated and any(_as_field(note) is not note for note in annotation.__metadata__):
        return True
    if supertype := _behind(annotation):
        if annotation in seen:
            return False
        return _needs_mirror(supertype, seen | {annotation})
    if attrs.has(annotation) or (sys.version_info < (3, 12) and _is_old_typed_dict(annotation)):
        return True
    if any(_needs_mirror(argument, seen) for argument in typing.get_args(annotation)):
        return True
    if not _has_fields(annotation) or annotation in seen:
        return False
    seen.add(annotation)
    return any(_needs_mirror(hint, seen) for hint in _hints(annotation).values())


def _behind(annotation: Any) -> Any:
    """What a `NewType` or a `type` statement stands for."""
    if isinstance(annotation, typing_extensions.TypeAliasType):
        return annotation.__value__
    return getattr(annotation, "__supertype__", None)


def _has_fields(annotation: Any) -> bool:
    cls: Any = typing.get_origin(annotation) or annotation
    if not isinstance(cls, type):
        return False
    known = attrs.has(cls) or dataclasses.is_dataclass(cls) or typing_extensions.is_typeddict(cast("Any", cls))
    return known or _is_model(cls)


def _is_model(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, BaseModel) and cls is not BaseModel


def _is_old_typed_dict(annotation: Any) -> bool:
    cls = typing.get_origin(annotation) or annotation
    return typing.is_typeddict(cls) and type(cls).__module__ == "typing"


@functools.cache
def _mirror(annotation: Any) -> _Made:
    """A class that pydantic knows, and what makes a value of `annotation` of one of it."""
    cls: Any = typing.get_origin(annotation) or annotation
    hints = {name: _readable(hint) for name, hint in _hints(annotation).items()}
    if attrs.has(cls):
        return _of_attrs(cls, hints)
    if dataclasses.is_dataclass(cls):
        return _of_dataclass(cast("type", cls), hints)
    if typing_extensions.is_typeddict(cls):
        return _of_typed_dict(cls, hints)
    return _of_model(cls, hints)


def _of_attrs(cls: Any, hints: Mapping[str, Any]) -> _Made:
    fields: list[tuple[str, Any, Any]] = []
    for field in attrs.fields(cls):
        if not field.init:
            continue
        default = _late(field.default is attrs.NOTHING, field.default, isinstance(field.default, _FACTORY))
        fields.append((field.alias or field.name, hints.get(field.name, Any), default))
    return _of_fields(cls, fields)


_FACTORY: Any = attrs.Factory


def _of_dataclass(cls: Any, hints: Mapping[str, Any]) -> _Made:
    fields: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        made = field.default_factory is not dataclasses.MISSING
        default = _late(field.default is dataclasses.MISSING and not made, field.default, made)
        fields.append((field.name, hints.get(field.name, Any), default))
    return _of_fields(cls, fields)


def _late(required: bool, default: Any, made: bool) -> Any:
    """The default of a mirror's field. One that is made at run time is left to the real class."""
    if made:
        return Field(default_factory=lambda: _Left, validate_default=False)
    return ... if required else default


def _of_fields(cls: Any, fields: list[tuple[str, Any, Any]]) -> _Made:
    specified = [
        (name, hint) if default is ... else (name, hint, _as_dataclass_field(default)) for name, hint, default in fields
    ]
    mirror = dataclasses.make_dataclass(cls.__name__, cast("Any", specified), kw_only=True)
    mirror.__doc__ = cls.__doc__
    mirror.__module__ = cls.__module__
    names = [name for name, _, _ in fields]

    def make(read: Any) -> Any:
        try:
            return cls(**{name: value for name in names if (value := getattr(read, name)) is not _Left})
        except ValueError:
            raise
        except Exception as error:  # validators of user classes raise what they like
            raise ValueError(str(error) or type(error).__name__) from error

    return mirror, make


def _as_dataclass_field(default: Any) -> Any:
    # Without this, dataclasses refuse a default that is a list or another value without a hash.
    return default if isinstance(default, Hashable) else dataclasses.field(default_factory=lambda: default)


def _of_typed_dict(cls: Any, hints: Mapping[str, Any]) -> _Made:
    fields: dict[str, Any] = {}
    for name, hint in hints.items():
        optional = name in cls.__optional_keys__
        while (origin := typing.get_origin(hint)) in _QUALIFIERS:
            optional = origin is typing_extensions.NotRequired or (
                optional and origin is not typing_extensions.Required
            )
            (hint,) = typing.get_args(hint)
        fields[name] = _optional(hint, optional)
    mirror = _typed_dict(cls.__name__, fields)
    mirror.__doc__ = cls.__doc__
    return mirror, lambda read: read


_QUALIFIERS: tuple[Any, ...] = (
    typing_extensions.Required,
    typing_extensions.NotRequired,
    typing_extensions.ReadOnly,
)


def _of_model(cls: Any, hints: Mapping[str, Any]) -> _Made:
    """A subclass whose fields are read by their mirrors."""
    # What needs no mirror stands as it was declared: its notes come with the field, and must not be there twice.
    kinds = {
        name: field.annotation if (hint := hints.get(name, Any)) == field.rebuild_annotation() else hint
        for name, field in cls.model_fields.items()
    }
    fields: dict[str, Any] = {
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
        "__annotations__": kinds,
        "model_config": ConfigDict(defer_build=True),
        **cls.model_fields,
    }
    mirror = type(cls)(cls.__name__, (cls,), fields)

    def make(read: Any) -> Any:
        if issubclass(cls, RootModel):
            return cast("Any", cls).model_construct(read.root, read.model_fields_set)
        return cls.model_construct(read.model_fields_set, **dict(read))

    return mirror, make


def _typed_dict(name: str, fields: Mapping[str, Any]) -> Any:
    return cast("Any", typing_extensions.TypedDict)(name, dict(fields))


def _optional(annotation: Any, optional: bool) -> Any:
    return cast("Any", typing_extensions.NotRequired)[annotation] if optional else annotation


def _hints(annotation: Any) -> dict[str, Any]:
    """The fields' types; of a generic class with arguments, with these in the place of its variables."""
    cls: Any = typing.get_origin(annotation) or annotation
    if _is_model(cls):
        hints = {name: field.rebuild_annotation() for name, field in cls.model_fields.items()}
    else:
        hints = typing_extensions.get_type_hints(cls, include_extras=True)
    variables = dict(zip(getattr(cls, "__parameters__", ()), typing.get_args(annotation), strict=False))
    return {name: _filled(hint, variables) for name, hint in hints.items()} if variables else hints


def _filled(hint: Any, variables: Mapping[Any, Any]) -> Any:
    if isinstance(hint, typing.TypeVar):
        return variables.get(hint, hint)
    wanted = getattr(hint, "__parameters__", ())
    return hint[tuple(variables.get(variable, Any) for variable in wanted)] if wanted else hint


# --- Descriptions -------------------------------------------------------------------------------------------------


def _described(annotation: Any, description: str | None) -> Any:
    """With a description, that one in the annotation itself would win over."""
    annotation = _readable(annotation)
    return annotation if description is None else _annotated(annotation, (), Field(description=description))


def _annotated(annotation: Any, notes: tuple[Any, ...], first: Any = None) -> Any:
    if typing.get_origin(annotation) is typing.Annotated:
        notes = (*annotation.__metadata__, *notes)
        annotation = typing.get_args(annotation)[0]
    parts = (annotation, *notes) if first is None else (annotation, first, *notes)
    return cast("Any", typing.Annotated)[parts]


def _as_field(note: Any) -> Any:
    """`Annotated[int, "text"]` and `Annotated[int, Doc("text")]` describe; what else is there means what it means."""
    text = note if isinstance(note, str) else getattr(note, "documentation", None)
    return Field(description=text) if isinstance(text, str) else note
