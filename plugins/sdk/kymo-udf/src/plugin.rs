//! The plugin as a whole: its table of functions, and the exports that the server calls.

use std::cell::RefCell;
use std::marker::PhantomData;

use crate::aggregate::{AggregateFunction, Groups, States};
use crate::bindings::exports::kymo::udf::aggregate as aggregate_exports;
use crate::bindings::exports::kymo::udf::catalog::{
    self, Kind, NullHandling, Overload, Volatility,
};
use crate::bindings::exports::kymo::udf_preview::{
    table as table_exports, transform as transform_exports,
};
use crate::bindings::kymo::udf::types::{Argument, Column, Error, Field};
use crate::context;
use crate::scalar::ScalarFunction;
use crate::state::State as _;
use crate::table::{Rows, TableFunction};
use crate::transform::{Batch, Output, Pipeline, Settings, TransformFunction};
use crate::window::{Partition, WindowFunction};

/// What a world of `wit/` says, encoded as a component's type section wants it.
pub mod worlds {
    /// `scalar-plugin`
    pub const SCALAR: &[u8] = include_bytes!("worlds/scalar.world");
    /// `aggregate-plugin`
    pub const AGGREGATE: &[u8] = include_bytes!("worlds/aggregate.world");
    /// `window-plugin`
    pub const WINDOW: &[u8] = include_bytes!("worlds/window.world");
    /// `table-plugin`
    pub const TABLE: &[u8] = include_bytes!("worlds/table.world");
    /// `transform-plugin`
    pub const TRANSFORM: &[u8] = include_bytes!("worlds/transform.world");

    /// The same as an array, which is what a link section takes.
    pub const fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(bytes);
        array
    }
}

/// One function, reduced to what the table needs.
pub struct Entry {
    name: &'static str,
    describe: fn() -> catalog::Function,
    run: Run,
}

type OpenRows = fn(Vec<Column>) -> Result<Box<dyn Rows>, Error>;
type OpenPipeline = fn(&Settings, &[Field]) -> Result<Box<dyn Pipeline>, Error>;

enum Run {
    Scalar(fn(&[Argument], usize) -> Result<Column, Error>),
    Aggregate(fn() -> Box<dyn Groups>),
    Window(fn(&[Argument], Partition<'_>) -> Result<Column, Error>),
    Table(OpenRows),
    Transform(OpenPipeline),
}

impl Entry {
    pub fn scalar<F: ScalarFunction>() -> Self {
        Entry {
            name: F::NAME,
            describe: || catalog::Function {
                volatility: F::VOLATILITY,
                nulls: F::NULLS,
                ..function(
                    Kind::Scalar,
                    F::NAME,
                    F::DESCRIPTION,
                    overload(F::parameters(), vec![F::returns()], Vec::new()),
                )
            },
            run: Run::Scalar(F::call),
        }
    }

    pub fn aggregate<A: AggregateFunction>() -> Self {
        Entry {
            name: A::NAME,
            describe: || catalog::Function {
                nulls: A::NULLS,
                state_version: A::STATE_VERSION,
                retractable: A::RETRACTABLE,
                ..function(
                    Kind::Aggregate,
                    A::NAME,
                    A::DESCRIPTION,
                    overload(A::parameters(), vec![A::returns()], A::State::fields()),
                )
            },
            run: Run::Aggregate(|| Box::new(States::<A>::new())),
        }
    }

    pub fn window<W: WindowFunction>() -> Self {
        Entry {
            name: W::NAME,
            describe: || catalog::Function {
                volatility: W::VOLATILITY,
                nulls: NullHandling::Pass,
                ..function(
                    Kind::Window,
                    W::NAME,
                    W::DESCRIPTION,
                    overload(W::parameters(), vec![W::returns()], Vec::new()),
                )
            },
            run: Run::Window(W::call),
        }
    }

    pub fn table<T: TableFunction>() -> Self {
        Entry {
            name: T::NAME,
            describe: || catalog::Function {
                volatility: T::VOLATILITY,
                nulls: NullHandling::Pass,
                ..function(
                    Kind::Table,
                    T::NAME,
                    T::DESCRIPTION,
                    overload(T::parameters(), T::returns(), Vec::new()),
                )
            },
            run: Run::Table(T::open),
        }
    }

    pub fn transform<T: TransformFunction>() -> Self {
        Entry {
            name: T::NAME,
            describe: || catalog::Function {
                volatility: Volatility::Stable,
                ..function(
                    Kind::Transform,
                    T::NAME,
                    T::DESCRIPTION,
                    overload(Vec::new(), Vec::new(), Vec::new()),
                )
            },
            run: Run::Transform(|settings, input| Ok(Box::new(T::open(settings, input)?))),
        }
    }
}

fn overload(parameters: Vec<Field>, returns: Vec<Field>, state: Vec<Field>) -> Overload {
    Overload { parameters, variadic: false, returns, state }
}

fn function(kind: Kind, name: &str, description: &str, only: Overload) -> catalog::Function {
    catalog::Function {
        name: name.to_owned(),
        kind,
        overloads: vec![only],
        volatility: Volatility::Immutable,
        nulls: NullHandling::Skip,
        state_version: 0,
        retractable: false,
        description: description.trim().to_owned(),
    }
}

/// All functions; entries of one name and kind are overloads of one function.
pub struct Table(Vec<Vec<Entry>>);

impl Table {
    pub fn new(entries: Vec<Entry>) -> Self {
        let mut table: Vec<Vec<Entry>> = Vec::new();
        for entry in entries {
            match table.iter_mut().find(|overloads| overloads[0].name == entry.name) {
                Some(overloads) => overloads.push(entry),
                None => table.push(vec![entry]),
            }
        }
        Table(table)
    }

    fn functions(&self) -> Vec<catalog::Function> {
        let describe = |overloads: &Vec<Entry>| {
            let mut function = (overloads[0].describe)();
            for other in &overloads[1..] {
                let other = (other.describe)();
                function.overloads.extend(other.overloads);
                // What holds for all overloads is what the least permissive one says.
                function.volatility = function.volatility.max(other.volatility);
                function.nulls = function.nulls.max(other.nulls);
                function.retractable &= other.retractable;
            }
            function
        };
        self.0.iter().map(describe).collect()
    }

    fn run(&self, function: u32, overload: u32) -> Option<&Run> {
        Some(&self.0.get(function as usize)?.get(overload as usize)?.run)
    }
}

fn unknown(function: u32, overload: u32) -> Error {
    Error::internal(format!("there is no function {function} with an overload {overload} here"))
}

/// A plugin; `plugin!` implements it.
pub trait Plugin: 'static {
    const NAME: &'static str;
    const VERSION: &'static str;
    const DESCRIPTION: &'static str;
    fn table() -> &'static Table;
}

pub fn describe<P: Plugin>() -> catalog::Plugin {
    context::listen_to_panics();
    catalog::Plugin {
        name: P::NAME.to_owned(),
        version: P::VERSION.to_owned(),
        description: P::DESCRIPTION.to_owned(),
        functions: P::table().functions(),
    }
}

pub fn start(context: catalog::Context) -> Result<(), Error> {
    context::start(context);
    Ok(())
}

pub fn call<P: Plugin>(
    function: u32,
    overload: u32,
    args: &[Argument],
    rows: u32,
) -> Result<Column, Error> {
    match P::table().run(function, overload) {
        Some(Run::Scalar(run)) => run(args, rows as usize),
        _ => Err(unknown(function, overload)),
    }
}

pub fn call_window<P: Plugin>(
    function: u32,
    overload: u32,
    args: &[Argument],
    peers: &[u32],
    rows: u32,
) -> Result<Column, Error> {
    match P::table().run(function, overload) {
        Some(Run::Window(run)) => run(args, Partition::new(rows as usize, peers)?),
        _ => Err(unknown(function, overload)),
    }
}

/// The resource behind a table function.
pub struct CursorOf<P>(RefCell<Box<dyn Rows>>, PhantomData<P>);

impl<P: Plugin> table_exports::GuestCursor for CursorOf<P> {
    fn open(
        function: u32,
        overload: u32,
        args: Vec<Column>,
    ) -> Result<table_exports::Cursor, Error> {
        match P::table().run(function, overload) {
            Some(Run::Table(open)) => {
                let cursor = CursorOf::<P>(RefCell::new(open(args)?), PhantomData);
                Ok(table_exports::Cursor::new(cursor))
            }
            _ => Err(unknown(function, overload)),
        }
    }

    fn next(&self, max_rows: u32) -> Result<Option<Batch>, Error> {
        self.0.borrow_mut().next(max_rows as usize)
    }
}

/// The resource behind an aggregate.
pub struct Accumulator<P>(RefCell<Box<dyn Groups>>, PhantomData<P>);

impl<P: Plugin> aggregate_exports::GuestAccumulator for Accumulator<P> {
    fn open(function: u32, overload: u32) -> Result<aggregate_exports::Accumulator, Error> {
        match P::table().run(function, overload) {
            Some(Run::Aggregate(open)) => {
                let groups = Accumulator::<P>(RefCell::new(open()), PhantomData);
                Ok(aggregate_exports::Accumulator::new(groups))
            }
            _ => Err(unknown(function, overload)),
        }
    }

    fn update(
        &self,
        args: Vec<Column>,
        groups: Option<Vec<u32>>,
        total_groups: u32,
        rows: u32,
    ) -> Result<(), Error> {
        let mut states = self.0.borrow_mut();
        states.update(&args, groups.as_deref(), total_groups as usize, rows as usize)
    }

    fn retract(&self, args: Vec<Column>, groups: Option<Vec<u32>>, rows: u32) -> Result<(), Error> {
        self.0.borrow_mut().retract(&args, groups.as_deref(), rows as usize)
    }

    fn state(&self, emit: aggregate_exports::EmitTo) -> Result<Vec<Column>, Error> {
        self.0.borrow_mut().state(emit)
    }

    fn merge(
        &self,
        state: Vec<Column>,
        groups: Option<Vec<u32>>,
        total_groups: u32,
        rows: u32,
    ) -> Result<(), Error> {
        let mut states = self.0.borrow_mut();
        states.merge(&state, groups.as_deref(), total_groups as usize, rows as usize)
    }

    fn evaluate(&self, emit: aggregate_exports::EmitTo) -> Result<Column, Error> {
        self.0.borrow_mut().evaluate(emit)
    }

    fn size(&self) -> u64 {
        self.0.borrow().size() as u64
    }
}

/// The resource behind a transform.
pub struct PipelineOf<P>(RefCell<Box<dyn Pipeline>>, PhantomData<P>);

impl<P: Plugin> transform_exports::GuestPipeline for PipelineOf<P> {
    fn open(
        function: u32,
        settings: Vec<(String, String)>,
        input: Vec<Field>,
    ) -> Result<transform_exports::Pipeline, Error> {
        match P::table().run(function, 0) {
            Some(Run::Transform(open)) => {
                let pipeline = open(&Settings(settings), &input)?;
                let pipeline = PipelineOf::<P>(RefCell::new(pipeline), PhantomData);
                Ok(transform_exports::Pipeline::new(pipeline))
            }
            _ => Err(unknown(function, 0)),
        }
    }

    fn schema(&self) -> Vec<Field> {
        self.0.borrow().schema()
    }

    fn apply(&self, input: Batch) -> Result<Output, Error> {
        self.0.borrow_mut().apply(input)
    }
}

/// Makes a plugin of the crate: once, in its root.
///
/// `name` and at least one of `scalars`, `aggregates`, `windows`, `tables`, `transforms` are needed,
/// in this order; `description` stands after the name. The version is the crate's.
#[macro_export]
macro_rules! plugin {
    (
        name: $name:expr
        $(, description: $description:expr)?
        $(, scalars: [$($scalar:path),+ $(,)?])?
        $(, aggregates: [$($aggregate:path),+ $(,)?])?
        $(, windows: [$($window:path),+ $(,)?])?
        $(, tables: [$($table:path),+ $(,)?])?
        $(, transforms: [$($transform:path),+ $(,)?])?
        $(,)?
    ) => {
        #[doc(hidden)]
        #[allow(non_camel_case_types)]
        pub struct __KymoPlugin;

        impl $crate::plugin::Plugin for __KymoPlugin {
            const NAME: &'static str = $name;
            const VERSION: &'static str = env!("CARGO_PKG_VERSION");
            const DESCRIPTION: &'static str = concat!($($description)?);
            fn table() -> &'static $crate::plugin::Table {
                static TABLE: ::std::sync::OnceLock<$crate::plugin::Table> =
                    ::std::sync::OnceLock::new();
                TABLE.get_or_init(|| $crate::plugin::Table::new(vec![
                    $($($crate::plugin::Entry::scalar::<$scalar>(),)+)?
                    $($($crate::plugin::Entry::aggregate::<$aggregate>(),)+)?
                    $($($crate::plugin::Entry::window::<$window>(),)+)?
                    $($($crate::plugin::Entry::table::<$table>(),)+)?
                    $($($crate::plugin::Entry::transform::<$transform>(),)+)?
                ]))
            }
        }

        $crate::__catalog!();
        $($crate::__scalar!($($scalar)+);)?
        $($crate::__aggregate!($($aggregate)+);)?
        $($crate::__window!($($window)+);)?
        $($crate::__table!($($table)+);)?
        $($crate::__transform!($($transform)+);)?
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __catalog {
    () => {
        impl $crate::bindings::exports::kymo::udf::catalog::Guest for __KymoPlugin {
            fn describe() -> $crate::bindings::exports::kymo::udf::catalog::Plugin {
                $crate::plugin::describe::<__KymoPlugin>()
            }
            fn start(
                context: $crate::Context,
            ) -> ::std::result::Result<(), $crate::Error> {
                $crate::plugin::start(context)
            }
        }
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::exports::kymo::udf::catalog::__export_kymo_udf_catalog_0_1_0_cabi!(
            __KymoPlugin with_types_in $crate::bindings::exports::kymo::udf::catalog
        );
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __scalar {
    ($($function:path)+) => {
        impl $crate::bindings::exports::kymo::udf::scalar::Guest for __KymoPlugin {
            fn call(
                function: u32,
                overload: u32,
                args: Vec<$crate::Argument>,
                rows: u32,
            ) -> ::std::result::Result<$crate::Column, $crate::Error> {
                $crate::plugin::call::<__KymoPlugin>(function, overload, &args, rows)
            }
        }
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::exports::kymo::udf::scalar::__export_kymo_udf_scalar_0_1_0_cabi!(
            __KymoPlugin with_types_in $crate::bindings::exports::kymo::udf::scalar
        );
        $crate::__world!(SCALAR, "component-type:kymo-scalar");
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __aggregate {
    ($($function:path)+) => {
        impl $crate::bindings::exports::kymo::udf::aggregate::Guest for __KymoPlugin {
            type Accumulator = $crate::plugin::Accumulator<__KymoPlugin>;
        }
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::exports::kymo::udf::aggregate::__export_kymo_udf_aggregate_0_1_0_cabi!(
            __KymoPlugin with_types_in $crate::bindings::exports::kymo::udf::aggregate
        );
        $crate::__world!(AGGREGATE, "component-type:kymo-aggregate");
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __window {
    ($($function:path)+) => {
        impl $crate::bindings::exports::kymo::udf_preview::window::Guest for __KymoPlugin {
            fn call(
                function: u32,
                overload: u32,
                args: Vec<$crate::Argument>,
                peers: Vec<u32>,
                rows: u32,
            ) -> ::std::result::Result<$crate::Column, $crate::Error> {
                $crate::plugin::call_window::<__KymoPlugin>(function, overload, &args, &peers, rows)
            }
        }
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::exports::kymo::udf_preview::window::
            __export_kymo_udf_preview_window_0_0_1_cabi!(
            __KymoPlugin with_types_in $crate::bindings::exports::kymo::udf_preview::window
        );
        $crate::__world!(WINDOW, "component-type:kymo-window");
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __table {
    ($($function:path)+) => {
        impl $crate::bindings::exports::kymo::udf_preview::table::Guest for __KymoPlugin {
            type Cursor = $crate::plugin::CursorOf<__KymoPlugin>;
        }
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::exports::kymo::udf_preview::table::
            __export_kymo_udf_preview_table_0_0_1_cabi!(
            __KymoPlugin with_types_in $crate::bindings::exports::kymo::udf_preview::table
        );
        $crate::__world!(TABLE, "component-type:kymo-table");
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __transform {
    ($($function:path)+) => {
        impl $crate::bindings::exports::kymo::udf_preview::transform::Guest for __KymoPlugin {
            type Pipeline = $crate::plugin::PipelineOf<__KymoPlugin>;
        }
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::exports::kymo::udf_preview::transform::
            __export_kymo_udf_preview_transform_0_0_1_cabi!(
            __KymoPlugin with_types_in $crate::bindings::exports::kymo::udf_preview::transform
        );
        $crate::__world!(TRANSFORM, "component-type:kymo-transform");
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __world {
    ($world:ident, $section:literal) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            const BYTES: &[u8] = $crate::plugin::worlds::$world;
            #[unsafe(link_section = $section)]
            static SECTION: [u8; BYTES.len()] = $crate::plugin::worlds::array(BYTES);
        };
    };
}
