//! What stands in an attribute's parentheses, and what its documentation says.

use proc_macro2::{Ident, Span, TokenStream};
use quote::quote;
use syn::parse::Parser as _;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned as _;
use syn::{Attribute, Error, Expr, ExprLit, Lit, Meta, Result, Token};

/// The options of an attribute.
#[derive(Default)]
pub struct Options {
    pub name: Option<String>,
    pub batch: bool,
    pub volatility: Option<Ident>,
    pub state_version: u32,
    pub columns: Vec<String>,
}

/// Reads them; what nobody knows is an error.
pub fn read(tokens: TokenStream) -> Result<Options> {
    let mut options = Options::default();
    for meta in Punctuated::<Meta, Token![,]>::parse_terminated.parse2(tokens)? {
        let key = meta.path().get_ident().map(ToString::to_string).unwrap_or_default();
        match (key.as_str(), &meta) {
            ("batch", Meta::Path(_)) => options.batch = true,
            ("immutable" | "stable" | "volatile", Meta::Path(path)) => {
                let name = key[..1].to_uppercase() + &key[1..];
                options.volatility = Some(Ident::new(&name, path.span()));
            }
            ("name", Meta::NameValue(pair)) => options.name = Some(text(&pair.value)?),
            ("columns", Meta::NameValue(pair)) => {
                let names = text(&pair.value)?;
                options.columns = names.split(',').map(|name| name.trim().to_owned()).collect();
            }
            ("state_version", Meta::NameValue(pair)) => {
                options.state_version = number(&pair.value)?;
            }
            _ => {
                return Err(Error::new(
                    meta.span(),
                    "known here: name = \"…\", batch, immutable, stable, volatile, \
                     state_version = N, columns = \"…\"",
                ));
            }
        }
    }
    Ok(options)
}

impl Options {
    /// The SQL name: the given one, or the item's in snake case.
    pub fn sql_name(&self, item: &str, span: Span) -> Result<String> {
        let name = self.name.clone().unwrap_or_else(|| snake(item));
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let starts = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        if starts && name.chars().all(good) && name.len() <= 63 {
            return Ok(name);
        }
        Err(Error::new(span, format!("{name:?} is no SQL name: a-z, 0-9 and _, 63 at most")))
    }

    /// The volatility as a path.
    pub fn volatility(&self) -> TokenStream {
        match &self.volatility {
            Some(name) => quote!(::kymo_udf::Volatility::#name),
            None => quote!(::kymo_udf::Volatility::Immutable),
        }
    }
}

fn text(value: &Expr) -> Result<String> {
    match value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Ok(text.value()),
        other => Err(Error::new(other.span(), "a text in quotes is wanted here")),
    }
}

fn number(value: &Expr) -> Result<u32> {
    match value {
        Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) => number.base10_parse(),
        other => Err(Error::new(other.span(), "a whole number is wanted here")),
    }
}

/// `HoltWinters` as `holt_winters`.
fn snake(name: &str) -> String {
    let mut out = String::new();
    for (index, letter) in name.trim_start_matches("r#").chars().enumerate() {
        if letter.is_uppercase() && index > 0 && !out.ends_with('_') {
            out.push('_');
        }
        out.extend(letter.to_lowercase());
    }
    out
}

/// The text of the documentation comments.
pub fn documentation(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => text(&pair.value).ok(),
        _ => None,
    });
    let lines: Vec<String> =
        lines.map(|line| line.strip_prefix(' ').unwrap_or(&line).to_owned()).collect();
    lines.join("\n").trim().to_owned()
}
