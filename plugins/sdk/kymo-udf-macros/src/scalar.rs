//! `#[scalar]`: the loop around a function of single rows or of whole columns.

use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote};
use syn::spanned::Spanned as _;
use syn::{Error, FnArg, ItemFn, Result, Type};

use crate::options::{Options, documentation};
use crate::signature::{self, Parameter};

/// What differs between the kinds of functions.
struct Parts {
    nulls: &'static str,
    parameters: TokenStream,
    returns: TokenStream,
    body: TokenStream,
}

pub fn expand(options: &Options, item: &ItemFn) -> Result<TokenStream> {
    let function = &item.sig.ident;
    if !item.sig.generics.params.is_empty() {
        return Err(Error::new(item.sig.generics.span(), "write one function for each type"));
    }
    let parts = if options.batch { batch(item)? } else { rows(item)? };
    let name = options.sql_name(&function.to_string(), function.span())?;
    let description = documentation(&item.attrs);
    let volatility = options.volatility();
    let nulls = format_ident!("{}", parts.nulls);
    let Parts { parameters, returns, body, .. } = parts;
    let visibility = &item.vis;
    Ok(quote! {
        #item

        #[doc(hidden)]
        #[allow(non_camel_case_types)]
        #visibility struct #function {}

        impl ::kymo_udf::scalar::ScalarFunction for #function {
            const NAME: &'static str = #name;
            const DESCRIPTION: &'static str = #description;
            const VOLATILITY: ::kymo_udf::Volatility = #volatility;
            const NULLS: ::kymo_udf::NullHandling = ::kymo_udf::NullHandling::#nulls;
            fn parameters() -> ::std::vec::Vec<::kymo_udf::Field> {
                #parameters
            }
            fn returns() -> ::kymo_udf::Field {
                #returns
            }
            fn call(
                args: &[::kymo_udf::Argument],
                rows: usize,
            ) -> ::std::result::Result<::kymo_udf::Column, ::kymo_udf::Error> {
                #body
            }
        }
    })
}

fn rows(item: &ItemFn) -> Result<Parts> {
    let parameters = signature::parameters(signature::inputs(&item.sig.inputs))?;
    let Some(returned) = signature::output(&item.sig.output) else {
        return Err(Error::new(item.sig.span(), "a scalar function returns a value"));
    };
    let fails = signature::is_result(returned);
    let sees_nulls = parameters.iter().any(|parameter| parameter.nullable);
    let chunks = !sees_nulls
        && signature::is_fixed(returned)
        && !parameters.is_empty()
        && parameters.iter().all(|parameter| signature::is_fixed(&parameter.plain));
    let body = if chunks {
        in_chunks(&item.sig.ident, &parameters, returned)
    } else {
        one_by_one(&item.sig.ident, &parameters, returned)
    };
    let names = parameters.iter().map(|parameter| &parameter.name);
    let types = parameters.iter().map(|parameter| &parameter.plain);
    let nullable = parameters.iter().map(|parameter| parameter.nullable || !sees_nulls);
    let strict = parameters.iter().any(|parameter| !parameter.nullable);
    Ok(Parts {
        // What lies under a null is unspecified: a function that can fail must not see it.
        nulls: if sees_nulls || fails { "Pass" } else { "Skip" },
        parameters: quote! {
            ::std::vec![#(::kymo_udf::column::parameter::<#types>(#names, #nullable)),*]
        },
        returns: quote!(::kymo_udf::column::returned::<#returned>(#strict)),
        body,
    })
}

/// Opens each argument as a column of its type.
fn open(parameters: &[Parameter]) -> TokenStream {
    let variables: Vec<&Ident> = parameters.iter().map(|each| &each.variable).collect();
    let types = parameters.iter().map(|each| &each.plain);
    let count = parameters.len();
    quote! {
        let [#(#variables),*]: &[_; #count] = ::kymo_udf::column::exactly(args)?;
        #(let #variables = ::kymo_udf::column::Arg::<#types>::new(#variables, rows)?;)*
    }
}

/// Sixteen rows a turn.
fn in_chunks(function: &Ident, parameters: &[Parameter], returned: &Type) -> TokenStream {
    let open = open(parameters);
    let variables: Vec<&Ident> = parameters.iter().map(|each| &each.variable).collect();
    let lanes: Vec<Ident> =
        variables.iter().map(|variable| format_ident!("lanes_of_{variable}")).collect();
    quote! {
        #open
        #(let #lanes = #variables.lanes::<16>();)*
        let array = ::kymo_udf::map::rows::<16, #returned>(
            rows,
            |row, slots| {
                #(let #lanes = #lanes.chunk(row);)*
                for lane in 0..16 {
                    slots[lane] = #function(#(#lanes[lane]),*);
                }
            },
            |row| #function(#(#variables.get(row)),*),
        );
        ::std::result::Result::Ok(::kymo_udf::Column {
            values: <#returned as ::kymo_udf::value::Fixed>::values(array),
            validity: ::kymo_udf::column::strict_validity(args, rows),
        })
    }
}

fn one_by_one(function: &Ident, parameters: &[Parameter], returned: &Type) -> TokenStream {
    let open = open(parameters);
    let values = parameters.iter().map(|each| {
        let variable = &each.variable;
        if each.nullable { quote!(#variable.option(row)) } else { quote!(#variable.get(row)) }
    });
    let strict = parameters.iter().filter(|each| !each.nullable).map(|each| &each.variable);
    quote! {
        #open
        let mut results = ::kymo_udf::column::Results::<#returned>::with_capacity(rows);
        for row in 0..rows {
            if true #(&& #strict.is_valid(row))* {
                results.push(#function(#(#values),*))?;
            } else {
                results.push_null();
            }
        }
        ::std::result::Result::Ok(results.finish())
    }
}

fn batch(item: &ItemFn) -> Result<Parts> {
    let mut inputs: Vec<&FnArg> = item.sig.inputs.iter().collect();
    let last = inputs.pop();
    let out = last.and_then(result_slice).ok_or_else(|| {
        Error::new(item.sig.inputs.span(), "the last parameter takes the result: `out: &mut [f64]`")
    })?;
    let parameters = signature::parameters(inputs.into_iter())?;
    let function = &item.sig.ident;
    let (mut opened, mut types, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for each in &parameters {
        let (open, plain) = batch_argument(each);
        let variable = &each.variable;
        opened.push(open);
        types.push(plain);
        values.push(quote!(#variable));
    }
    let variables = parameters.iter().map(|each| &each.variable);
    let names = parameters.iter().map(|each| &each.name);
    let count = parameters.len();
    Ok(Parts {
        nulls: "Skip",
        parameters: quote! {
            ::std::vec![#(::kymo_udf::column::parameter::<#types>(#names, true)),*]
        },
        returns: quote!(::kymo_udf::column::returned::<#out>(true)),
        body: quote! {
            let [#(#variables),*]: &[_; #count] = ::kymo_udf::column::exactly(args)?;
            #(#opened)*
            let mut out = ::std::vec![<#out as ::std::default::Default>::default(); rows];
            ::kymo_udf::error::Outcome::outcome(#function(#(#values,)* &mut out))?;
            ::std::result::Result::Ok(::kymo_udf::Column {
                values: <#out as ::kymo_udf::value::Fixed>::values(out),
                validity: ::kymo_udf::column::strict_validity(args, rows),
            })
        },
    })
}

/// The `T` of a last parameter `&mut [T]`.
fn result_slice(last: &FnArg) -> Option<&Type> {
    let FnArg::Typed(typed) = last else { return None };
    let Type::Reference(reference) = &*typed.ty else { return None };
    match &*reference.elem {
        Type::Slice(slice) if reference.mutability.is_some() => Some(&slice.elem),
        _ => None,
    }
}

/// How an argument of a whole batch is opened: a slice, a column of texts, or a constant.
fn batch_argument(parameter: &Parameter) -> (TokenStream, TokenStream) {
    let Parameter { variable, plain, name, .. } = parameter;
    if let Type::Reference(reference) = plain
        && let Type::Slice(slice) = &*reference.elem
        && signature::is_fixed(&slice.elem)
    {
        let element = &slice.elem;
        let room = format_ident!("room_of_{variable}");
        let open = quote! {
            let mut #room = ::std::vec::Vec::new();
            let #variable = ::kymo_udf::column::Arg::<#element>::new(#variable, rows)?;
            let #variable = #variable.slice(rows, &mut #room);
        };
        return (open, quote!(#element));
    }
    if signature::last_name(plain).is_some_and(|name| name == "Strings") {
        let open = quote! {
            let #variable = ::kymo_udf::column::Arg::<&str>::new(#variable, rows)?.strings();
        };
        return (open, quote!(&str));
    }
    let open = quote! {
        let #variable = ::kymo_udf::column::Arg::<#plain>::constant(#variable, #name)?;
    };
    (open, quote!(#plain))
}
