//! `#[aggregate]`: the loops over rows and groups around the functions of an aggregate.

use proc_macro2::{Ident, TokenStream};
use quote::quote;
use syn::spanned::Spanned as _;
use syn::{Error, FnArg, ImplItem, ImplItemFn, ItemImpl, Result, Type};

use crate::options::{Options, documentation};
use crate::signature::{self, Parameter, last_name};

/// What an implementation consists of.
struct Items<'a> {
    state: &'a Type,
    functions: Vec<&'a ImplItemFn>,
}

pub fn expand(options: &Options, item: &ItemImpl) -> Result<TokenStream> {
    let aggregate = &item.self_ty;
    let own_name = last_name(aggregate)
        .ok_or_else(|| Error::new(aggregate.span(), "an aggregate is a type of its own"))?;
    let items = read(item)?;
    let update = items.need("update", item)?;
    let evaluate = items.need("evaluate", item)?;
    items.need("merge", item)?;
    let parameters = parameters(update)?;
    let Some(returned) = signature::output(&evaluate.sig.output) else {
        return Err(Error::new(evaluate.sig.span(), "`evaluate` returns the result"));
    };
    let name = options.sql_name(&own_name.to_string(), own_name.span())?;
    let description = documentation(&item.attrs);
    let sees_nulls = parameters.iter().any(|each| each.nullable);
    let nulls = if sees_nulls { quote!(Pass) } else { quote!(Skip) };
    let retract = items.find("retract").is_some();
    let update_rows = loop_over(&syn::parse_quote!(update), &parameters);
    let retract_rows = if retract {
        loop_over(&syn::parse_quote!(retract), &parameters)
    } else {
        let message = format!("{name} cannot take rows out of a window");
        quote! {
            let _ = (states, args, groups, rows);
            ::std::result::Result::Err(::kymo_udf::Error::unsupported(#message))
        }
    };
    let names = parameters.iter().map(|each| &each.name);
    let types = parameters.iter().map(|each| &each.plain);
    let nullable = parameters.iter().map(|each| each.nullable || !sees_nulls);
    let version = options.state_version;
    let Items { state, functions } = &items;
    Ok(quote! {
        impl #aggregate {
            #(#functions)*
        }

        impl ::kymo_udf::aggregate::AggregateFunction for #aggregate {
            type State = #state;
            const NAME: &'static str = #name;
            const DESCRIPTION: &'static str = #description;
            const NULLS: ::kymo_udf::NullHandling = ::kymo_udf::NullHandling::#nulls;
            const STATE_VERSION: u32 = #version;
            const RETRACTABLE: bool = #retract;
            fn parameters() -> ::std::vec::Vec<::kymo_udf::Field> {
                ::std::vec![#(::kymo_udf::column::parameter::<#types>(#names, #nullable)),*]
            }
            fn returns() -> ::kymo_udf::Field {
                ::kymo_udf::column::returned::<#returned>(false)
            }
            fn update_rows(
                states: &mut [#state],
                args: &[::kymo_udf::Column],
                groups: ::std::option::Option<&[u32]>,
                rows: usize,
            ) -> ::std::result::Result<(), ::kymo_udf::Error> {
                #update_rows
            }
            fn retract_rows(
                states: &mut [#state],
                args: &[::kymo_udf::Column],
                groups: ::std::option::Option<&[u32]>,
                rows: usize,
            ) -> ::std::result::Result<(), ::kymo_udf::Error> {
                #retract_rows
            }
            fn merge_one(
                into: &mut #state,
                other: &#state,
            ) -> ::std::result::Result<(), ::kymo_udf::Error> {
                ::kymo_udf::error::Outcome::outcome(Self::merge(into, other))
            }
            fn evaluate_all(
                states: &[#state],
            ) -> ::std::result::Result<::kymo_udf::Column, ::kymo_udf::Error> {
                let mut results =
                    ::kymo_udf::column::Results::<#returned>::with_capacity(states.len());
                for state in states {
                    results.push(Self::evaluate(state))?;
                }
                ::std::result::Result::Ok(results.finish())
            }
        }
    })
}

fn read(item: &ItemImpl) -> Result<Items<'_>> {
    let (mut state, mut functions) = (None, Vec::new());
    for each in &item.items {
        match each {
            ImplItem::Type(alias) if alias.ident == "State" => state = Some(&alias.ty),
            ImplItem::Fn(function) => functions.push(function),
            other => return Err(Error::new(other.span(), "only `type State` and functions here")),
        }
    }
    let state =
        state.ok_or_else(|| Error::new(item.self_ty.span(), "`type State = …;` is missing"))?;
    Ok(Items { state, functions })
}

impl<'a> Items<'a> {
    fn find(&self, name: &str) -> Option<&'a ImplItemFn> {
        self.functions.iter().copied().find(|function| function.sig.ident == name)
    }

    fn need(&self, name: &str, item: &ItemImpl) -> Result<&'a ImplItemFn> {
        let missing = || Error::new(item.self_ty.span(), format!("`fn {name}` is missing"));
        self.find(name).ok_or_else(missing)
    }
}

/// What stands after the state.
fn parameters(update: &ImplItemFn) -> Result<Vec<Parameter>> {
    let mut inputs = update.sig.inputs.iter();
    let state = inputs.next();
    let is_state = matches!(state, Some(FnArg::Typed(typed)) if matches!(&*typed.ty,
        Type::Reference(reference) if reference.mutability.is_some()));
    if !is_state {
        return Err(Error::new(update.sig.span(), "`fn update(state: &mut …, …)`"));
    }
    signature::parameters(inputs)
}

/// The loop over the rows of a batch and the states of their groups; a second one where no
/// row is null, which is most batches.
fn loop_over(function: &Ident, parameters: &[Parameter]) -> TokenStream {
    let variables: Vec<&Ident> = parameters.iter().map(|each| &each.variable).collect();
    let types: Vec<_> = parameters.iter().map(|each| &each.plain).collect();
    let count = parameters.len();
    let dense = parameters.iter().map(|each| {
        let Parameter { variable, plain, nullable, .. } = each;
        let value = quote!(<#plain as ::kymo_udf::value::Read>::get(#variable, row));
        if *nullable { quote!(::std::option::Option::Some(#value)) } else { value }
    });
    let values = parameters.iter().map(|each| {
        let variable = &each.variable;
        if each.nullable { quote!(#variable.option(row)) } else { quote!(#variable.get(row)) }
    });
    let strict = parameters.iter().filter(|each| !each.nullable).map(|each| &each.variable);
    quote! {
        let [#(#variables),*]: &[_; #count] = ::kymo_udf::column::exactly(args)?;
        #(let #variables = ::kymo_udf::column::Arg::<#types>::column(#variables, rows)?;)*
        if let (#(::std::option::Option::Some(#variables),)*) = (#(#variables.dense(),)*) {
            return ::kymo_udf::aggregate::each_dense(
                states,
                groups,
                rows,
                (#(#variables,)*),
                |(#(#variables,)*), from, count| {
                    (#(<#types as ::kymo_udf::value::Read>::part(#variables, from, count),)*)
                },
                |state, (#(#variables,)*), row| {
                    ::kymo_udf::error::Outcome::outcome(Self::#function(state, #(#dense),*))
                },
            );
        }
        ::kymo_udf::aggregate::each_row(states, groups, rows, |state, row| {
            if true #(&& #strict.is_valid(row))* {
                ::kymo_udf::error::Outcome::outcome(Self::#function(state, #(#values),*))?;
            }
            ::std::result::Result::Ok(())
        })
    }
}
