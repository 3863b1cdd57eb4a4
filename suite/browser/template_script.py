"""The feature page's Jinja template as JavaScript, so that one template draws both browsers.

Jinja parses; what it understood is written down as plain functions, one per macro. So the page needs no template engine and no
`eval`, which its Content-Security-Policy forbids. Everything is escaped as Jinja's autoescape does; there is no way to switch that
off here. What the subset below does not hold (calls of methods, `{% call %}`, `|safe`, ...) is refused with its line.
"""

import inspect
import json
from collections.abc import Callable
from itertools import count

from jinja2 import Environment, nodes

RUNTIME = {
    "max",
    "min",
    "length",
    "capitalize",
    "first",
    "last",
    "join",
    "default",
    "abs",
    "round",
    "sum",
    "upper",
    "lower",
}  # Jinja's own, written again in app/template.js
OPERATORS = {"eq": "===", "ne": "!==", "lt": "<", "lteq": "<=", "gt": ">", "gteq": ">="}
ARITHMETIC = {
    nodes.Add: "add({}, {})",
    nodes.Sub: "({} - {})",
    nodes.Mul: "({} * {})",
    nodes.Div: "({} / {})",
    nodes.FloorDiv: "Math.floor({} / {})",
}
TESTS = {
    "defined": "({} !== undefined)",
    "undefined": "({} === undefined)",
    "none": "({} === null)",
}


class UnsupportedTemplate(NotImplementedError):
    """The template uses something that has no counterpart in JavaScript here."""


def javascript(environment: Environment, name: str) -> str:
    """An expression: an object with a function for each macro of the template `name`, given `filters` and app/template.js."""
    return _Writer(environment, name).module()


class _Writer:
    def __init__(self, environment: Environment, name: str):
        self.environment, self.name, self.fresh = environment, name, count()
        self.tree = self._parse(name)
        self.macros = {m.name: [a.name for a in m.args] for m in self.tree.find_all(nodes.Macro)}

    def module(self) -> str:
        functions = [self._macro(n) for n in self.tree.body if isinstance(n, nodes.Macro)]
        return (
            "(() => {\n"
            + "\n".join(functions)
            + f"\nreturn {{ {', '.join(f'{m}: macro_{m}' for m in self.macros)} }};\n}})()"
        )

    # --- statements ---

    def _macro(self, macro: nodes.Macro) -> str:
        scope = {a.name: f"{a.name}_{next(self.fresh)}" for a in macro.args}
        required = len(macro.args) - len(macro.defaults)
        arguments = [
            scope[a.name]
            + (f" = {self._value(macro.defaults[i - required], scope)}" if i >= required else "")
            for i, a in enumerate(macro.args)
        ]
        return f"function macro_{macro.name}({', '.join(arguments)}) {{\nlet out = '';\n{self._block(macro.body, scope)}return new Safe(out);\n}}"

    def _block(self, body: list[nodes.Node], scope: dict[str, str]) -> str:
        """The statements of a macro or loop: names that it sets are its own, and begin as what they were outside."""
        outer, lines = dict(scope), []
        for name in dict.fromkeys(_assigned(body)):
            scope[name] = f"{name}_{next(self.fresh)}"
            lines.append(f"let {scope[name]} = {outer.get(name, 'undefined')};\n")
        return "".join(lines) + "".join(self._statement(node, scope) for node in body)

    def _statement(self, node: nodes.Node, scope: dict[str, str]) -> str:
        match node:
            case nodes.Output():
                return "".join(self._output(part, scope) for part in node.nodes)
            case nodes.If():
                text = f"if (truthy({self._value(node.test, scope)})) {{\n{self._statements(node.body, scope)}}}"
                for branch in node.elif_:
                    text += f" else if (truthy({self._value(branch.test, scope)})) {{\n{self._statements(branch.body, scope)}}}"
                return text + (
                    f" else {{\n{self._statements(node.else_, scope)}}}\n" if node.else_ else "\n"
                )
            case nodes.For():
                return self._loop(node, scope)
            case nodes.Assign(target=nodes.Name(name=name)):
                return f"{scope[name]} = {self._value(node.node, scope)};\n"
            case nodes.Include(template=nodes.Const(value=included)):
                return self._statements(self._parse(included).body, scope)
        raise self._refuse(node)

    def _statements(self, body: list[nodes.Node], scope: dict[str, str]) -> str:
        return "".join(self._statement(node, scope) for node in body)

    def _output(self, node: nodes.Node, scope: dict[str, str]) -> str:
        if isinstance(node, nodes.TemplateData):
            return f"out += {_text(node.data)};\n"
        as_text = "float_text" if self._is_float(node) else "escaped"
        return f"out += {as_text}({self._value(node, scope)});\n"

    def _loop(self, node: nodes.For, scope: dict[str, str]) -> str:
        if node.recursive:
            raise self._refuse(node)
        inner, items, loop = dict(scope), f"items_{next(self.fresh)}", f"loop_{next(self.fresh)}"
        names = [node.target] if isinstance(node.target, nodes.Name) else node.target.items
        inner |= {n.name: f"{n.name}_{next(self.fresh)}" for n in names}
        target = (
            inner[names[0].name]
            if isinstance(node.target, nodes.Name)
            else f"[{', '.join(inner[n.name] for n in names)}]"
        )
        chosen = (
            f".filter(({target}) => truthy({self._value(node.test, inner)}))" if node.test else ""
        )
        text = f"const {items} = [...iterable({self._value(node.iter, scope)})]{chosen};\n"
        inner["loop"] = loop
        text += f"for (const [{loop}_i, {target}] of {items}.entries()) {{\nconst {loop} = loop_of({loop}_i, {items}.length);\n{self._block(node.body, inner)}}}\n"
        return text + (
            f"if ({items}.length === 0) {{\n{self._block(node.else_, dict(scope))}}}\n"
            if node.else_
            else ""
        )

    # --- expressions ---

    def _value(self, node: nodes.Node, scope: dict[str, str]) -> str:
        value = lambda n: self._value(n, scope)  # noqa: E731
        match node:
            case nodes.Const():
                return _text(node.value)
            case nodes.TemplateData():
                return f"new Safe({_text(node.data)})"
            case nodes.Name() if node.name in scope:
                return scope[node.name]
            case nodes.Getattr() | nodes.Getitem():
                return self._item(node, scope)
            case nodes.List() | nodes.Tuple():
                return f"[{', '.join(value(n) for n in node.items)}]"
            case nodes.Dict():
                return f"{{{', '.join(f'[{value(pair.key)}]: {value(pair.value)}' for pair in node.items)}}}"
            case nodes.Filter():
                return self._filter(node, scope)
            case nodes.Call(node=nodes.Name(name=called)) if not (node.dyn_args or node.dyn_kwargs):
                if called in self.macros:
                    return f"macro_{called}({', '.join(self._arguments(self.macros[called], node, scope))})"
                if called in self.environment.globals and called not in (
                    "range",
                    "dict",
                    "lipsum",
                    "cycler",
                    "joiner",
                    "namespace",
                ):
                    signature = inspect.signature(self.environment.globals[called])
                    return f"filters.{called}({', '.join(self._arguments(list(signature.parameters), node, scope))})"
            case nodes.Test() if node.name in TESTS:
                return TESTS[node.name].format(
                    self._item(node.node, scope, strict=False)
                    if isinstance(node.node, nodes.Getattr | nodes.Getitem)
                    else value(node.node)
                )
            case nodes.Compare():
                return self._compare(node, scope)
            case nodes.And():
                return f"and({value(node.left)}, () => {value(node.right)})"
            case nodes.Or():
                return f"or({value(node.left)}, () => {value(node.right)})"
            case nodes.Not():
                return f"!truthy({value(node.node)})"
            case nodes.Neg():
                return f"(-{value(node.node)})"
            case nodes.CondExpr():
                return f"(truthy({value(node.test)}) ? {value(node.expr1)} : {value(node.expr2) if node.expr2 else 'undefined'})"
            case nodes.Concat():
                return f"concatenated([{', '.join(value(n) for n in node.nodes)}])"
        if type(node) in ARITHMETIC:
            return ARITHMETIC[type(node)].format(value(node.left), value(node.right))
        raise self._refuse(node)

    def _item(
        self, node: nodes.Getattr | nodes.Getitem, scope: dict[str, str], strict: bool = True
    ) -> str:
        owner = self._value(node.node, scope)
        if isinstance(node, nodes.Getattr):
            return f"{'item' if strict else 'maybe'}({owner}, {_text(node.attr)})"
        if isinstance(node.arg, nodes.Slice):
            if node.arg.step is not None:
                raise self._refuse(node)
            start, stop = (
                self._value(n, scope) if n else "undefined" for n in (node.arg.start, node.arg.stop)
            )
            return f"{owner}.slice({start}, {stop})"
        return f"{'item' if strict else 'maybe'}({owner}, {self._value(node.arg, scope)})"

    def _filter(self, node: nodes.Filter, scope: dict[str, str]) -> str:
        own = node.name not in Environment().filters and node.name in self.environment.filters
        if not own and node.name not in RUNTIME or node.dyn_args or node.dyn_kwargs:
            raise self._refuse(node, f"filter {node.name}")
        if node.name == "default":  # of something that may not be there
            first = (
                self._item(node.node, scope, strict=False)
                if isinstance(node.node, nodes.Getattr | nodes.Getitem)
                else self._value(node.node, scope)
            )
        else:
            first = self._value(node.node, scope)
        if own:
            parameters = list(inspect.signature(self.environment.filters[node.name]).parameters)[1:]
            return f"filters.{node.name}({', '.join([first, *self._arguments(parameters, node, scope)])})"
        if node.kwargs:
            raise self._refuse(node, f"named arguments of filter {node.name}")
        return f"builtin.{node.name}({', '.join([first, *(self._value(a, scope) for a in node.args)])})"

    def _arguments(
        self, parameters: list[str], call: nodes.Call | nodes.Filter, scope: dict[str, str]
    ) -> list[str]:
        given = [self._value(a, scope) for a in call.args]
        named = {k.key: self._value(k.value, scope) for k in call.kwargs}
        if len(given) > len(parameters) or not set(named) <= set(parameters[len(given) :]):
            raise self._refuse(call, "arguments")
        for parameter in parameters[len(given) :]:
            given.append(named.pop(parameter, "undefined"))
        return given

    def _compare(self, node: nodes.Compare, scope: dict[str, str]) -> str:
        left, parts = self._value(node.expr, scope), []
        for operand in node.ops:
            right = self._value(operand.expr, scope)
            if operand.op in ("in", "notin"):
                parts.append(f"{'!' if operand.op == 'notin' else ''}contains({right}, {left})")
            else:
                parts.append(f"({left} {OPERATORS[operand.op]} {right})")
            left = right
        return f"({' && '.join(parts)})"

    def _is_float(self, node: nodes.Node) -> bool:
        """Whether Python would make a float of it whatever the operands: it prints 2.0 where JavaScript prints 2."""
        match node:
            case nodes.Add() | nodes.Sub() | nodes.Mul():
                return self._is_float(node.left) or self._is_float(node.right)
            case nodes.Call(node=nodes.Name(name=called)) if called not in self.macros:
                return _gives_float(self.environment.globals.get(called))
            case nodes.Filter():
                return node.name == "round" or _gives_float(self.environment.filters.get(node.name))
        return isinstance(node, nodes.Div)

    def _parse(self, name: str) -> nodes.Template:
        source, _, _ = self.environment.loader.get_source(self.environment, name)
        return self.environment.parse(source, name)

    def _refuse(self, node: nodes.Node, what: str = "") -> UnsupportedTemplate:
        shown = what or (
            f"name {node.name!r}" if isinstance(node, nodes.Name) else type(node).__name__
        )
        line = next(n.lineno for n in (node, *node.find_all(nodes.Node)) if n.lineno)
        return UnsupportedTemplate(
            f"{self.name}, line {line}: {shown} cannot be drawn in the one-file browser; see {__name__}"
        )


def _assigned(body: list[nodes.Node]) -> list[str]:
    """Names that `set` gives a value in this block, loops inside it left out."""
    names = []
    for node in body:
        if isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name):
            names.append(node.target.name)
        elif isinstance(node, nodes.If):
            names += _assigned(node.body) + _assigned(node.elif_) + _assigned(node.else_)
    return names


def _gives_float(function: Callable | None) -> bool:
    return getattr(function, "__annotations__", {}).get("return") is float


def _text(value) -> str:
    """A constant as JavaScript that can stand in a script element."""
    return json.dumps(value).replace("</", "<\\/").replace("<!--", "<\\!--")
