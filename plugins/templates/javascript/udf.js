// my_plugin: what this plugin is for.
//
// The server calls `describe` once, when the plugin is installed, and then `call` for each
// batch of rows with the numbers of function and overload that `describe` gave.

const double = (name) => ({ name, dataType: { tag: "float64" }, nullable: true });

/** The rows of an argument: a column, or one value for all rows. */
function rowsOf(argument, rows) {
  const values = argument.val.values.val;
  return argument.tag === "constant" ? new Float64Array(rows).fill(values[0]) : values;
}

const functions = [
  {
    name: "c2f",
    description: "Degrees Celsius to degrees Fahrenheit.",
    parameters: [double("x")],
    returns: [double("result")],
    call: ([x], out) => {
      for (let row = 0; row < out.length; row++) out[row] = x[row] * 1.8 + 32;
    },
  },
];

export const catalog = {
  describe: () => ({
    name: "my_plugin",
    version: "0.1.0",
    description: "What this plugin is for",
    functions: functions.map(({ name, description, parameters, returns }) => ({
      name,
      kind: "scalar",
      overloads: [{ parameters, variadic: false, returns, state: [] }],
      volatility: "immutable",
      nulls: "skip",
      stateVersion: 0,
      retractable: false,
      description,
    })),
  }),
  start: (_context) => {},
};

export const scalar = {
  call(fn, _overload, args, rows) {
    const out = new Float64Array(rows);
    functions[fn].call(args.map((argument) => rowsOf(argument, rows)), out);
    return { values: { tag: "float64", val: out }, validity: undefined };
  },
};
