"""The parameters of a flow: bound, checked and converted by pydantic, described, stored."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable
from typing import Any, get_type_hints

from asyncflow import codec
from asyncflow.errors import InvalidParameters, NotSerializable
from asyncflow.masking import Masker, secrets_in
from asyncflow.resources import Resource, resources_of
from asyncflow.spec import bind

#: The most that the parameters of one run may take in the store, in bytes.
MOST_BYTES = 16 * 1024 * 1024

MASK = "**********"

#: The kinds of parameters that take what is left.
_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Parameters:
    """What the signature of one flow says."""

    def __init__(self, flow_name: str, fn: Callable[..., Any], validate: bool) -> None:
        self._flow = flow_name
        self._fn = fn
        self._validate = validate
        self._signature: inspect.Signature | None = None
        self._adapters: dict[str, Any] | None = None

    @property
    def signature(self) -> inspect.Signature:
        if self._signature is None:
            self._signature = inspect.signature(self._fn)
        return self._signature

    @functools.cached_property
    def resources(self) -> dict[str, Resource[Any]]:
        """The parameters that are filled in with resources."""
        return resources_of(self._fn)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments by parameter name, defaults filled in.

        Raises:
            InvalidParameters: they do not fit the signature.
        """
        bound = bind("flow", self._flow, self.signature, self.resources, args, kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    def split(self, values: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Values by name as positional and keyword arguments of the function."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        gap = False  # after a parameter that is filled in later, others are given by name
        for name, parameter in self.signature.parameters.items():
            if name not in values:
                gap = True
                continue
            match parameter.kind:
                case parameter.VAR_POSITIONAL:
                    args.extend(values[name])
                case parameter.VAR_KEYWORD:
                    kwargs.update(values[name])
                case parameter.POSITIONAL_OR_KEYWORD | parameter.POSITIONAL_ONLY if not gap:
                    args.append(values[name])
                case _:
                    kwargs[name] = values[name]
        return tuple(args), kwargs

    def check(self, values: dict[str, Any]) -> dict[str, Any]:
        """Values converted to what the annotations say.

        Raises:
            InvalidParameters: names the flow, the parameter, the value and the reason.
        """
        if not self._validate:
            return values
        checked = {}
        for name, value in values.items():
            adapter = self._adapter(name)
            checked[name] = value if adapter is None else self._convert(adapter, name, value)
        return checked

    def takes(self, name: str, value: Any) -> bool:
        """Whether a parameter accepts a value, as far as its annotation says."""
        adapter = self._adapter(name) if self._validate else None
        if adapter is None:
            return True
        try:
            self._convert(adapter, name, value)
        except InvalidParameters:
            return False
        return True

    def _convert(self, adapter: Any, name: str, value: Any) -> Any:
        import pydantic

        try:
            return adapter.validate_python(value)
        except pydantic.ValidationError as error:
            reasons = "; ".join(
                _where(e["loc"]) + e["msg"] for e in error.errors(include_url=False)[:3]
            )
            shown = MASK if "Secret" in repr(adapter) else codec.describe(value)
            raise InvalidParameters(
                f"flow {self._flow!r}, parameter {name!r}: {shown} is not accepted: {reasons}"
            ) from None

    def _adapter(self, name: str) -> Any:
        if self._adapters is None:
            self._adapters = self._make_adapters()
        return self._adapters.get(name)

    def _make_adapters(self) -> dict[str, Any]:
        annotated = {
            n: p
            for n, p in self.signature.parameters.items()
            if p.annotation is not p.empty and n not in self.resources
        }
        if not annotated:
            return {}
        import pydantic

        hints = self._hints()
        adapters = {}
        config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        for name, parameter in annotated.items():
            hint: Any = hints.get(name, parameter.annotation)
            if isinstance(hint, str) or hint is Any:
                continue
            if parameter.kind is parameter.VAR_POSITIONAL:
                hint = tuple.__class_getitem__((hint, ...))
            elif parameter.kind is parameter.VAR_KEYWORD:
                hint = dict.__class_getitem__((str, hint))
            try:
                adapters[name] = pydantic.TypeAdapter(hint, config=config)
            except pydantic.PydanticUserError:
                # A model or dataclass brings a configuration of its own.
                adapters[name] = pydantic.TypeAdapter(hint)
            except Exception:  # noqa: S112 - an annotation that pydantic cannot read checks nothing
                continue
        return adapters

    def _hints(self) -> dict[str, Any]:
        fn = inspect.unwrap(getattr(self._fn, "func", self._fn))
        try:
            return get_type_hints(fn, include_extras=True)
        except Exception:
            names = dict(vars(sys.modules.get(fn.__module__, object)))
            names.update(inspect.getclosurevars(fn).nonlocals)
            found = {}
            for name, annotation in getattr(fn, "__annotations__", {}).items():
                try:
                    found[name] = (
                        eval(annotation, names)  # noqa: S307 - the user's own source text
                        if isinstance(annotation, str)
                        else annotation
                    )
                except Exception:  # noqa: S112 - this one cannot be known here
                    continue
            return found

    def json_schema(self) -> dict[str, Any]:
        """The parameters as a JSON schema, for forms; what cannot be described is any value."""
        properties: dict[str, Any] = {}
        required, definitions = [], {}
        for name, parameter in self.signature.parameters.items():
            if name in self.resources or parameter.kind in (
                parameter.VAR_KEYWORD,
                parameter.VAR_POSITIONAL,
            ):
                continue
            adapter = self._adapter(name)
            schema: dict[str, Any] = {}
            if adapter is not None:
                try:
                    schema = adapter.json_schema(ref_template="#/$defs/{model}")
                except Exception:
                    schema = {}
            definitions.update(schema.pop("$defs", {}))
            if parameter.default is parameter.empty:
                required.append(name)
            elif "Secret" not in repr(adapter):
                try:
                    schema = {**schema, "default": json.loads(codec.encode(parameter.default))}
                except NotSerializable:
                    pass
            properties[name] = {"title": name, **schema}
        found = {"type": "object", "properties": properties, "required": required}
        return {**found, "$defs": definitions} if definitions else found

    # --- in the store ---------------------------------------------------------------------------

    def store(self, values: dict[str, Any], masker: Masker | None = None) -> bytes:
        """The parameters as JSON for the store.

        One that is a secret, or holds one at any depth, is not stored: only what may be shown
        of it, and that it must be given again.

        Raises:
            InvalidParameters: one cannot be stored, or they are too large.
        """
        stored: dict[str, Any] = {}
        for name, value in values.items():
            if name in self.resources:
                continue  # opened anew in each life of the run
            if _is_secret(value):
                stored[name] = {"$": "secret"}
                continue
            try:
                plain = json.loads(codec.encode(value, name))
            except NotSerializable as error:
                found = self._dump(name, value)
                if found is None:
                    raise InvalidParameters(
                        f"flow {self._flow!r}: the parameter {name!r} cannot be stored: {error};"
                        " pass plain data, and open what is live inside the flow or as a @resource"
                    ) from None
                plain = found[0]
            if masker is not None and masker.active:
                text = json.dumps(plain, ensure_ascii=False).encode("utf-8", "surrogatepass")
                if masker.holds(text) or next(secrets_in(value), None) is not None:
                    plain = {"$": "secret", "shown": json.loads(masker.data(text))}
            stored[name] = plain
        data = json.dumps(stored, ensure_ascii=False).encode("utf-8", "surrogatepass")
        if len(data) > MOST_BYTES:
            raise InvalidParameters(
                f"flow {self._flow!r}: its parameters take {len(data):,} bytes, and a run keeps at"
                f" most {MOST_BYTES:,}: pass a path or a URL instead of the data"
            )
        return data

    def _dump(self, name: str, value: Any) -> tuple[Any] | None:
        """A value as pydantic writes it, if its annotation brings it back from that."""
        adapter = self._adapter(name)
        if adapter is None or not self._validate:
            return None
        try:
            plain = json.loads(adapter.dump_json(value))
            adapter.validate_python(plain)
        except Exception:
            return None
        return (plain,)

    def load(self, data: bytes, given: dict[str, Any] | None = None) -> dict[str, Any]:
        """Parameters from the store; *given* replaces some of them.

        Raises:
            InvalidParameters: a secret, which is not stored, is missing, or a parameter without
                a default that the flow did not have then; or there is no parameter of a given
                name.
        """
        known = self.signature.parameters
        for name in given or ():
            if name not in known:
                raise InvalidParameters(
                    f"flow {self._flow!r} has no parameter {name!r}: its signature is"
                    f" {self._flow}{self.signature}"
                )
        values: dict[str, Any] = {}
        for name, value in json.loads(data or b"{}").items():
            if given and name in given:
                continue
            if _is_hidden(value):
                raise InvalidParameters(
                    f"flow {self._flow!r}: the parameter {name!r} is or holds a secret and was not"
                    " stored:"
                    f" give it again, as in resume(run_id, parameters={{{name!r}: ...}})"
                )
            values[name] = codec.decode(json.dumps(value).encode())
        values.update(given or {})
        for name, parameter in known.items():
            needed = parameter.default is parameter.empty and parameter.kind not in _REST
            if needed and name not in values and name not in self.resources:
                raise InvalidParameters(
                    f"flow {self._flow!r}: its parameter {name!r} was added since, and has no"
                    " default: add one, or give it, as in"
                    f" resume(run_id, parameters={{{name!r}: ...}})"
                )
        return values


def masked(data: bytes) -> dict[str, Any]:
    """Stored parameters for people: plain JSON, nothing is decoded."""
    shown = json.loads(data or b"{}")
    return {k: v.get("shown", MASK) if _is_hidden(v) else v for k, v in shown.items()}


def hidden_in(data: bytes) -> set[str]:
    """The names of stored parameters that are, or hold, secrets."""
    return {name for name, value in json.loads(data or b"{}").items() if _is_hidden(value)}


def _is_hidden(stored: Any) -> bool:
    """Whether a stored parameter stands for one that is not stored."""
    return isinstance(stored, dict) and stored.get("$") == "secret"


def _is_secret(value: Any) -> bool:
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(value, pydantic.SecretStr | pydantic.SecretBytes)


def _where(loc: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in loc) + ": " if loc else ""
