// my_plugin: what this plugin is for.
//
// The server calls `describe` once, when the plugin is installed, and then `call` for each
// batch of rows with the numbers of function and overload that `describe` gave.

#include <stdlib.h>
#include "bindings/kymo.h"

enum { C2F };

// Sixteen rows a turn: the server checks at each turn of a loop whether the query was ended,
// which would cost more than this arithmetic does.
static void c2f(const double *x, double *out, size_t rows) {
  size_t row = 0;
  for (; row + 16 <= rows; row += 16) {
#pragma clang loop unroll(full)
    for (size_t lane = 0; lane < 16; lane++) {
      out[row + lane] = x[row + lane] * 1.8 + 32.0;
    }
  }
  for (; row < rows; row++) {
    out[row] = x[row] * 1.8 + 32.0;
  }
}

static kymo_udf_types_field_t *float64(const char *name) {
  kymo_udf_types_field_t *field = calloc(1, sizeof *field);
  kymo_string_dup(&field->name, name);
  field->data_type.tag = KYMO_UDF_TYPES_DATA_TYPE_FLOAT64;
  field->nullable = true;
  return field;
}

void exports_kymo_udf_catalog_describe(exports_kymo_udf_catalog_plugin_t *plugin) {
  exports_kymo_udf_catalog_overload_t *overload = calloc(1, sizeof *overload);
  overload->parameters.ptr = float64("x");
  overload->parameters.len = 1;
  overload->returns.ptr = float64("result");
  overload->returns.len = 1;

  exports_kymo_udf_catalog_function_t *function = calloc(1, sizeof *function);
  kymo_string_dup(&function->name, "c2f");
  kymo_string_dup(&function->description, "Degrees Celsius to degrees Fahrenheit.");
  function->kind = EXPORTS_KYMO_UDF_CATALOG_KIND_SCALAR;
  function->overloads.ptr = overload;
  function->overloads.len = 1;
  function->volatility = EXPORTS_KYMO_UDF_CATALOG_VOLATILITY_IMMUTABLE;
  function->nulls = EXPORTS_KYMO_UDF_CATALOG_NULL_HANDLING_SKIP;

  kymo_string_dup(&plugin->name, "my_plugin");
  kymo_string_dup(&plugin->version, "0.1.0");
  kymo_string_dup(&plugin->description, "What this plugin is for");
  plugin->functions.ptr = function;
  plugin->functions.len = 1;
}

bool exports_kymo_udf_catalog_start(exports_kymo_udf_catalog_context_t *context,
                                    exports_kymo_udf_catalog_error_t *error) {
  (void)error;
  exports_kymo_udf_catalog_context_free(context);
  return true;
}

static bool fail(kymo_udf_types_error_t *error, const char *message) {
  error->code = KYMO_UDF_TYPES_ERROR_CODE_INTERNAL;
  kymo_string_dup(&error->message, message);
  error->row.is_some = false;
  return false;
}

bool exports_kymo_udf_scalar_call(uint32_t function, uint32_t overload,
                                  exports_kymo_udf_scalar_list_argument_t *args, uint32_t rows,
                                  exports_kymo_udf_scalar_column_t *out,
                                  exports_kymo_udf_scalar_error_t *error) {
  if (function != C2F || overload != 0 || args->len != 1) {
    return fail(error, "no such function");
  }
  kymo_udf_types_column_t *column = &args->ptr[0].val.column;
  if (column->values.tag != KYMO_UDF_TYPES_VALUES_FLOAT64) {
    return fail(error, "c2f wants doubles");
  }
  kymo_list_f64_t x = column->values.val.float64;
  double *result = malloc((rows ? rows : 1) * sizeof *result);
  if (result == NULL) {
    return fail(error, "out of memory");
  }
  if (args->ptr[0].tag == KYMO_UDF_TYPES_ARGUMENT_CONSTANT) {
    for (uint32_t row = 0; row < rows; row++) {
      c2f(x.ptr, &result[row], 1);
    }
  } else {
    c2f(x.ptr, result, rows);
  }
  out->values.tag = KYMO_UDF_TYPES_VALUES_FLOAT64;
  out->values.val.float64.ptr = result;
  out->values.val.float64.len = rows;
  // What is null the server knows by itself: the function says NULL_HANDLING_SKIP.
  out->validity.is_some = false;
  exports_kymo_udf_scalar_list_argument_free(args);
  return true;
}
