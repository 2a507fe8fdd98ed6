//! What the types of a signature mean for the loop around the function.

use proc_macro2::Ident;
use quote::format_ident;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned as _;
use syn::{Error, FnArg, GenericArgument, Pat, PathArguments, Result, ReturnType, Token, Type};

/// One parameter of a function of single rows.
pub struct Parameter {
    /// Its name in SQL.
    pub name: String,
    /// The variable that holds its column.
    pub variable: Ident,
    /// Its type, without the `Option`.
    pub plain: Type,
    /// Whether the function sees its nulls.
    pub nullable: bool,
}

/// The parameters of a function of single rows.
pub fn parameters<'a>(inputs: impl Iterator<Item = &'a FnArg>) -> Result<Vec<Parameter>> {
    inputs
        .enumerate()
        .map(|(index, input)| {
            let FnArg::Typed(typed) = input else {
                return Err(Error::new(input.span(), "no `self` here"));
            };
            let name = match &*typed.pat {
                Pat::Ident(pattern) => pattern.ident.to_string().trim_matches('_').to_owned(),
                _ => String::new(),
            };
            let name = if name.is_empty() { format!("arg{}", index + 1) } else { name };
            let inner = option(&typed.ty);
            Ok(Parameter {
                name,
                variable: format_ident!("argument_{index}"),
                plain: inner.unwrap_or(&typed.ty).clone(),
                nullable: inner.is_some(),
            })
        })
        .collect()
}

/// All inputs.
pub fn inputs(all: &Punctuated<FnArg, Token![,]>) -> impl Iterator<Item = &FnArg> {
    all.iter()
}

/// The `T` of `Option<T>`.
pub fn option(whole: &Type) -> Option<&Type> {
    generic(whole, "Option")
}

/// Whether this is a `Result<…>`.
pub fn is_result(whole: &Type) -> bool {
    generic(whole, "Result").is_some()
}

/// The `T` of `Name<T>`, where `whole` is one.
pub fn generic<'a>(whole: &'a Type, name: &str) -> Option<&'a Type> {
    let Type::Path(path) = whole else { return None };
    let last = path.path.segments.last().filter(|last| last.ident == name)?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::Type(inner) => Some(inner),
        _ => None,
    })
}

/// Whether the column of this type is an array of it.
pub fn is_fixed(plain: &Type) -> bool {
    const FIXED: [&str; 7] = ["f64", "f32", "i64", "i32", "u64", "Timestamp", "Date"];
    last_name(plain).is_some_and(|name| FIXED.iter().any(|fixed| name == fixed))
}

/// The last name of a path.
pub fn last_name(plain: &Type) -> Option<&Ident> {
    match plain {
        Type::Path(path) => Some(&path.path.segments.last()?.ident),
        _ => None,
    }
}

/// The type that comes back.
pub fn output(output: &ReturnType) -> Option<&Type> {
    match output {
        ReturnType::Default => None,
        ReturnType::Type(_, plain) => Some(plain),
    }
}
