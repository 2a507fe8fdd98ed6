//! A plugin's aggregate as one of the engine's.
//!
//! Grouped, all groups of a partition are one accumulator of the plugin ([`super::groups`]);
//! ungrouped and in windows there is one group ([`super::single`]); with `DISTINCT` and
//! `ORDER BY` the rows are gathered first ([`super::gather`]).

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, GroupsAccumulator, Signature,
};
use kymo_kernel::Error;
use kymo_plugins::{Accumulator as Guest, Overload, PluginFunction};

use super::calls::Called;
use super::gather::{Gather, Wanted};
use super::groups::Groups;
use super::lending::Lending;
use super::scalar::{same, volatility};
use super::single::Single;
use super::{foreign, overloads};

/// The aggregate, of one version, for one statement.
pub(super) struct PluginAggregate {
    called: Called,
    function: PluginFunction,
    signature: Signature,
    /// `None` within a prepared statement that does not run.
    lending: Option<Arc<Lending>>,
}

/// One signature of an aggregate, at work in a statement.
#[derive(Clone)]
pub(super) struct Work {
    lending: Arc<Lending>,
    function: PluginFunction,
    overload: usize,
}

impl Work {
    /// The signature.
    pub(super) fn signature(&self) -> &Overload {
        &self.function.function().overloads[self.overload]
    }

    /// An accumulator of the plugin without groups, whose memory is charged as it grows.
    pub(super) fn lease(&self) -> kymo_kernel::Result<Guest> {
        self.lending.accumulator(&self.function, self.overload)
    }

    /// Takes back a leased one that has become empty.
    pub(super) fn give_back(&self, accumulator: Guest) {
        self.lending.give_back(&self.function, self.overload, accumulator);
    }

    /// An accumulator of the plugin whose memory the caller charges.
    pub(super) fn open(&self) -> kymo_kernel::Result<Guest> {
        Guest::open(self.lending.uncharged(), &self.function, self.overload)
    }

    /// Makes a call, unless the query has failed.
    pub(super) fn attempt<T>(&self, call: impl FnOnce() -> kymo_kernel::Result<T>) -> Result<T> {
        self.lending.attempt(call).map_err(foreign)
    }
}

impl PluginAggregate {
    pub(super) fn new(called: Called, function: PluginFunction, lending: Arc<Lending>) -> Self {
        let signature = Signature::user_defined(volatility(&function));
        PluginAggregate { called, function, signature, lending: Some(lending) }
    }

    /// The same function for another statement, or for none.
    pub(super) fn lent(&self, lending: Option<&Arc<Lending>>) -> Arc<AggregateUDF> {
        Arc::new(AggregateUDF::from(PluginAggregate {
            called: self.called.clone(),
            function: self.function.clone(),
            signature: self.signature.clone(),
            lending: lending.cloned(),
        }))
    }

    pub(super) fn called(&self) -> &Called {
        &self.called
    }

    pub(super) fn function(&self) -> &PluginFunction {
        &self.function
    }

    fn overload(&self, fields: &[FieldRef]) -> Result<usize> {
        let types: Vec<&DataType> = fields.iter().map(|field| field.data_type()).collect();
        overloads::exact(&self.called.key, self.function.function(), &types).map_err(foreign)
    }

    fn work(&self, args: &AccumulatorArgs) -> Result<Work> {
        let overload = self.overload(args.expr_fields)?;
        let Some(lending) = self.lending.clone() else {
            let text = format!("{} is called outside of a statement", self.called.key);
            return Err(foreign(Error::internal(text)));
        };
        Ok(Work { lending, function: self.function.clone(), overload })
    }

    fn gather(&self, args: &AccumulatorArgs, sliding: bool) -> Result<Box<dyn Accumulator>> {
        let arguments = args.expr_fields.iter().map(|field| Ok(field.data_type().clone()));
        let order = args.order_bys.iter().map(|each| each.expr.data_type(args.schema));
        let wanted = Wanted {
            arguments: args.expr_fields.len(),
            types: arguments.chain(order).collect::<Result<_>>()?,
            order: args.order_bys.iter().map(|each| each.options).collect(),
            distinct: args.is_distinct,
            sliding,
        };
        Ok(Box::new(Gather::new(self.work(args)?, wanted)))
    }
}

/// Whether an aggregate is one of a plugin.
pub(in super::super) fn is_of_plugin(aggregate: &AggregateUDF) -> bool {
    aggregate.inner().is::<PluginAggregate>()
}

/// Whether rows have to be seen together before the plugin sees them.
fn gathers(args: &AccumulatorArgs) -> bool {
    args.is_distinct || !args.order_bys.is_empty()
}

impl fmt::Debug for PluginAggregate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PluginAggregate({} of {:?})", self.called.key, self.function.version())
    }
}

impl PartialEq for PluginAggregate {
    fn eq(&self, other: &Self) -> bool {
        self.called == other.called && same(&self.function, &other.function)
    }
}

impl Eq for PluginAggregate {}

impl Hash for PluginAggregate {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.called.hash(state);
    }
}

impl AggregateUDFImpl for PluginAggregate {
    fn name(&self) -> &str {
        &self.called.key
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let chosen = overloads::choose(&self.called.key, self.function.function(), types);
        let (_, casts) = chosen.map_err(foreign)?;
        Ok(casts.iter().map(|each| overloads::plain(each).clone()).collect())
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let function = self.function.function();
        let (overload, _) =
            overloads::choose(&self.called.key, function, types).map_err(foreign)?;
        let field = function.overloads[overload].result().map_err(foreign)?;
        Ok(field.data_type().clone())
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let named = |name: &str| format_state_name(args.name, name);
        if args.is_distinct || !args.ordering_fields.is_empty() {
            let fields = args.input_fields.iter().chain(args.ordering_fields).enumerate();
            let list = |(at, field): (usize, &FieldRef)| {
                let item = Field::new_list_field(field.data_type().clone(), true);
                Arc::new(Field::new_list(named(&format!("rows{at}")), item, true))
            };
            return Ok(fields.map(list).collect());
        }
        let signature = &self.function.function().overloads[self.overload(args.input_fields)?];
        let state = signature.state.iter().map(|field| {
            Arc::new(Field::new(named(field.name()), field.data_type().clone(), true))
        });
        Ok(state.collect())
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if gathers(&args) {
            return self.gather(&args, false);
        }
        Ok(Box::new(Single::new(self.work(&args)?, false)))
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if gathers(&args) || !self.function.function().retractable {
            return self.gather(&args, true);
        }
        Ok(Box::new(Single::new(self.work(&args)?, true)))
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        !gathers(&args)
    }

    fn create_groups_accumulator(
        &self,
        args: AccumulatorArgs,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Groups::new(self.work(&args)?)))
    }

    /// Gathered rows are put in order here.
    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::SoftRequirement
    }

    /// Rows that come in order are gathered and ordered as others are.
    fn with_beneficial_ordering(
        self: Arc<Self>,
        _beneficial: bool,
    ) -> Result<Option<Arc<dyn AggregateUDFImpl>>> {
        Ok(Some(self))
    }
}
