"""Settings: objects whose attributes are checked when they are set, as the constructor checks its arguments.

What the constructor takes may be set: it is checked by the constructor itself, together with all other settings, and
used from the next step on. Anything else is refused: a misspelt name, or that of another library, would do nothing. A
class of the user's own may have attributes of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from fastbp.data.hints import near_names


class _Constructed(type):
    """The type of classes whose objects know when their constructor has ended."""

    if not TYPE_CHECKING:  # checkers read the constructors themselves

        def __call__(self, *args, **kwds):  # noqa: N804  (the names that type has)
            made = super().__call__(*args, **kwds)
            vars(made)["_constructed"] = True
            return made


class Settings(metaclass=_Constructed):
    """The base of all that has settings: arguments of the constructor that are attributes of the same name."""

    #: Attributes that are neither settings nor refused: fastbp keeps them up to date.
    _kept: ClassVar[tuple[str, ...]] = ()
    #: What to do instead of setting an attribute that is none of its settings.
    _instead: ClassVar[str] = "make a new one"

    @classmethod
    def _setting_names(cls) -> tuple[str, ...]:
        """What may be set: by default all arguments of the constructor."""
        code = getattr(cls.__init__, "__code__", None)
        return () if code is None else code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]

    def _settings(self) -> dict[str, Any]:
        """The settings by name, with which an equal object can be made."""
        return {name: getattr(self, name) for name in self._own_class()._setting_names()}

    @classmethod
    def _own_class(cls) -> type[Settings]:
        """The class itself or, if that is the user's, the nearest of fastbp's that it is derived from."""
        return next(c for c in cls.__mro__ if c.__module__.startswith("fastbp.") and issubclass(c, Settings))

    def _with(self, settings: dict[str, Any]) -> Settings:
        """A new object with these settings; raises if they are none."""
        make: Any = self._own_class()
        made: Settings = make(**settings)
        return made

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        """What the constructor takes where nothing is given."""
        make: Any = cls.__init__
        names, defaults = make.__code__.co_varnames[: make.__code__.co_argcount], make.__defaults__ or ()
        return dict(zip(names[len(names) - len(defaults) :], defaults, strict=True)) | (make.__kwdefaults__ or {})

    def _shown(self) -> str:
        """The settings that are not the defaults, as a constructor takes them."""
        own = self._own_class()
        names = own._setting_names()
        defaults = own._defaults() if names else {}
        values = ((name, vars(self).get(name)) for name in names)
        return ", ".join(
            f"{name}={value!r}"
            for name, value in values
            if name not in defaults or repr(value) != repr(defaults[name])  # as == of arrays gives arrays
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._shown()})"

    def __setattr__(self, name: str, value: Any) -> None:
        own = self._own_class()
        attribute = getattr(type(self), name, None)
        if name.startswith("_") or name in own._kept or "_constructed" not in vars(self):
            object.__setattr__(self, name, value)
        elif name in own._setting_names():
            made = vars(self._with(self._settings() | {name: value}))
            vars(self).update((key, made[key]) for key in made if key not in own._kept)
        elif (isinstance(attribute, property) and attribute.fset is not None) or (
            type(self) is not own and not hasattr(own, name)
        ):
            object.__setattr__(self, name, value)
        else:
            raise AttributeError(self._refusal(name))

    def _refusal(self, name: str) -> str:
        if name in vars(self) or hasattr(type(self), name):
            return f"{name}: it cannot be set; {self._instead}"
        names = self._own_class()._setting_names()
        hint = f"; {near_names(name, names)}" if names else ""
        return f"{name}: {type(self).__name__} has no such attribute{hint}; {self._instead}"
