"""my_plugin: what this plugin is for.

The server calls `describe` once, when the plugin is installed, and then `call` for each batch
of rows with the numbers of function and overload that `describe` gave.
"""

import wit_world
from wit_world.exports.catalog import (
    Function,
    Kind,
    NullHandling,
    Overload,
    Plugin,
    Volatility,
)
from wit_world.imports.types import (
    Argument_Constant,
    Column,
    DataType_Float64,
    Field,
    Values_Float64,
)


def double(name):
    return Field(name=name, data_type=DataType_Float64(), nullable=True)


def c2f(x):
    return x * 1.8 + 32.0


FUNCTIONS = [(c2f, [double("x")], double("result"), "Degrees Celsius to degrees Fahrenheit.")]


def rows_of(argument, rows):
    """The rows of an argument: a column, or one value for all rows."""
    values = argument.value.values.value
    return [values[0]] * rows if isinstance(argument, Argument_Constant) else values


class Catalog(wit_world.exports.Catalog):
    def describe(self):
        functions = [
            Function(
                name=function.__name__,
                kind=Kind.SCALAR,
                overloads=[
                    Overload(parameters=parameters, variadic=False, returns=[result], state=[])
                ],
                volatility=Volatility.IMMUTABLE,
                nulls=NullHandling.SKIP,
                state_version=0,
                retractable=False,
                description=description,
            )
            for function, parameters, result, description in FUNCTIONS
        ]
        return Plugin(
            name="my_plugin",
            version="0.1.0",
            description="What this plugin is for",
            functions=functions,
        )

    def start(self, ctx):
        pass


class Scalar(wit_world.exports.Scalar):
    def call(self, function, overload, args, rows):
        body = FUNCTIONS[function][0]
        columns = [rows_of(argument, rows) for argument in args]
        return Column(values=Values_Float64([body(*row) for row in zip(*columns)]), validity=None)
