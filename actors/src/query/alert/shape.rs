//! Rules of class `rows` as what runs on each commit: physical expressions that many rules share.
//!
//! Rules are often alike but for constants: the host that they look at, the limit that they
//! compare with. The host becomes a route, by which rows find their rules, and the limit a column
//! that is filled with each rule's own. What is left is one [`Shape`], compiled once, that
//! evaluates all those rules over a batch in one go.
//!
//! ```text
//! commit ── rows × rules that look at them ──► columns of the table │ time │ rule │ constants
//!                                                   filter, projection over the first part;
//!                                                   the others travel along
//! ```

use std::fmt::Write as _;
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array,
};
use datafusion::arrow::compute::{filter_record_batch, take};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::common::cast::as_boolean_array;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{Expr, LogicalPlan, Operator};
use datafusion::physical_expr::PhysicalExpr;
use kymo_kernel::ids::TableId;
use kymo_kernel::schema::TableDef;
use kymo_kernel::storage::conform::shape as fit;
use kymo_kernel::{Error, Result};

use super::super::error::from_engine;

/// The column behind those of a shape's result that holds each row's time.
const ROW_TIME: &str = "__time";
/// The column behind that: which rule of those that share the shape a row was evaluated for.
const ROW_RULE: &str = "__rule";

/// What rules that are alike share.
pub(crate) struct Shape {
    key: String,
    table: TableId,
    /// The columns of the table that it reads; `None` where no row can ever match.
    input: Option<SchemaRef>,
    time: FieldRef,
    route: Option<String>,
    steps: Vec<Step>,
    output: SchemaRef,
}

/// A rule's own part of its shape.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    /// The value of the tag that routes rows to it, where its shape has such a tag.
    pub(crate) route: Option<String>,
    /// Its constants, each an array of one value.
    pub(crate) constants: Vec<ArrayRef>,
}

/// Rows of a commit that the rules of one shape may look at.
pub(crate) struct Input {
    rows: RecordBatch,
    time: ArrayRef,
    /// The tag that routes.
    pub(crate) route: Option<ArrayRef>,
}

/// Which rows are evaluated for which rules.
pub(crate) struct Pairs {
    /// Places of rows.
    pub(crate) rows: UInt32Array,
    /// For each of them the place of a rule.
    pub(crate) rules: UInt32Array,
}

/// What came of an evaluation.
pub(crate) struct Output {
    /// The columns of the rules' query.
    pub(crate) rows: RecordBatch,
    /// The time of each row.
    pub(crate) times: ArrayRef,
    /// The place of each row's rule.
    pub(crate) rules: UInt32Array,
}

enum Step {
    Filter(Arc<dyn PhysicalExpr>),
    Project(Vec<Arc<dyn PhysicalExpr>>, SchemaRef),
    Rename(SchemaRef),
}

/// A rule's filters and projections, with its constants taken out, from its table upwards.
struct Parts {
    key: String,
    route: Option<(String, String)>,
    constants: Vec<ScalarValue>,
}

/// Compiles a plan of class `rows` over a table.
///
/// # Errors
/// Those of the engine; `internal` for a plan of another class.
pub(crate) fn compile(
    state: &SessionState,
    plan: &LogicalPlan,
    table: &TableDef,
) -> Result<(Shape, Own)> {
    let optimized = state.optimize(plan).map_err(from_engine)?;
    let time = Arc::new(table.schema.time()?.arrow());
    let mut nodes = Vec::new();
    let mut node = &optimized;
    let input = loop {
        node = match node {
            LogicalPlan::Projection(projection) => {
                nodes.push(node);
                &projection.input
            }
            LogicalPlan::Filter(filter) => {
                nodes.push(node);
                &filter.input
            }
            LogicalPlan::SubqueryAlias(alias) => {
                nodes.push(node);
                &alias.input
            }
            // Conditions that a scan was told of are only hints: the filter stays above it.
            LogicalPlan::TableScan(scan) if scan.fetch.is_none() => {
                break Some(Arc::new(scan.projected_schema.as_arrow().clone()));
            }
            LogicalPlan::EmptyRelation(empty) if !empty.produce_one_row => break None,
            other => {
                return Err(Error::internal(format!(
                    "a rule of class rows has become {}",
                    other.display()
                )));
            }
        };
    };
    let mut parts = Parts { key: format!("{}", table.id), route: None, constants: Vec::new() };
    let mut drafts = Vec::with_capacity(nodes.len());
    for node in nodes.into_iter().rev() {
        drafts.extend(parts.draft(node, table)?);
    }
    let extras = parts.extras(&time);
    let steps = drafts.into_iter().map(|draft| draft.compile(state, &extras));
    let steps = steps.collect::<Result<_>>()?;
    let output = Arc::new(optimized.schema().as_arrow().clone());
    for field in output.fields().iter().chain(input.iter().flat_map(|input| input.fields())) {
        let _ = write!(parts.key, "|{}:{}", field.name(), field.data_type());
    }
    let constants = parts.constants.iter().map(ScalarValue::to_array);
    let constants = constants.collect::<Result<_, _>>().map_err(from_engine)?;
    let (tag, value) = parts.route.unzip();
    let _ = write!(parts.key, "|route {tag:?}");
    let shape = Shape { key: parts.key, table: table.id, input, time, route: tag, steps, output };
    Ok((shape, Own { route: value, constants }))
}

/// A step before its expressions are compiled.
enum Draft {
    Filter(Expr, Arc<DFSchema>),
    Project(Vec<Expr>, Arc<DFSchema>, SchemaRef),
    Rename(SchemaRef),
}

impl Draft {
    fn compile(self, state: &SessionState, extras: &[FieldRef]) -> Result<Step> {
        let physical = |expr: Expr, below: &DFSchema| {
            let fields = below.iter().map(|(table, field)| (table.cloned(), field.clone()));
            let all = fields.chain(extras.iter().map(|field| (None, field.clone()))).collect();
            let schema = DFSchema::new_with_metadata(all, Default::default());
            let schema = schema.map_err(from_engine)?;
            state.create_physical_expr(expr, &schema).map_err(from_engine)
        };
        Ok(match self {
            Draft::Filter(expr, below) => Step::Filter(physical(expr, &below)?),
            Draft::Project(exprs, below, schema) => {
                let exprs = exprs.into_iter().map(|expr| physical(expr, &below));
                Step::Project(exprs.collect::<Result<_>>()?, schema)
            }
            Draft::Rename(schema) => Step::Rename(schema),
        })
    }
}

impl Parts {
    /// A node of the plan without the rule's constants; none where nothing is left of it.
    fn draft(&mut self, node: &LogicalPlan, table: &TableDef) -> Result<Option<Draft>> {
        Ok(match node {
            LogicalPlan::Filter(filter) => {
                let mut terms = split_conjunction_owned(filter.predicate.clone());
                // Further up a column of this name may be another one.
                let below = filter.input.as_ref();
                if self.route.is_none() && matches!(below, LogicalPlan::TableScan(_)) {
                    let found = terms.iter().position(|term| equality(term, table).is_some());
                    self.route = found.and_then(|at| equality(&terms.remove(at), table));
                }
                let predicate = conjunction(terms).map(|expr| self.without_constants(expr));
                predicate.transpose()?.map(|expr| {
                    let _ = write!(self.key, "|filter {expr}");
                    Draft::Filter(expr, below.schema().clone())
                })
            }
            LogicalPlan::Projection(projection) => {
                let exprs = projection.expr.iter().map(|expr| self.without_constants(expr.clone()));
                let exprs = exprs.collect::<Result<Vec<_>>>()?;
                for expr in &exprs {
                    let _ = write!(self.key, "|project {expr}");
                }
                let schema = Arc::new(projection.schema.as_arrow().clone());
                Some(Draft::Project(exprs, projection.input.schema().clone(), schema))
            }
            LogicalPlan::SubqueryAlias(alias) => {
                let _ = write!(self.key, "|as {}", alias.alias);
                Some(Draft::Rename(Arc::new(alias.schema.as_arrow().clone())))
            }
            other => {
                return Err(Error::internal(format!("a rule has become {}", other.display())));
            }
        })
    }

    /// The expression with columns in the place of numbers that something is compared with.
    fn without_constants(&mut self, expr: Expr) -> Result<Expr> {
        let taken = expr.transform_up(|expr| {
            let Expr::BinaryExpr(mut binary) = expr else { return Ok(Transformed::no(expr)) };
            let compares = matches!(
                binary.op,
                Operator::Eq
                    | Operator::NotEq
                    | Operator::Lt
                    | Operator::LtEq
                    | Operator::Gt
                    | Operator::GtEq
            );
            if compares && !matches!(*binary.left, Expr::Literal(..)) {
                self.take(&mut binary.right);
            } else if compares && !matches!(*binary.right, Expr::Literal(..)) {
                self.take(&mut binary.left);
            }
            Ok(Transformed::yes(Expr::BinaryExpr(binary)))
        });
        Ok(taken.map_err(from_engine)?.data)
    }

    fn take(&mut self, side: &mut Expr) {
        let Expr::Literal(value, _) = side else { return };
        if value.is_null() || !value.data_type().is_numeric() {
            return;
        }
        let place = self.constants.len();
        let _ = write!(self.key, "|constant {place} {}", value.data_type());
        self.constants.push(value.clone());
        *side = Expr::Column(Column::from_name(constant_name(place)));
    }

    /// What travels along with the rows.
    fn extras(&self, time: &Field) -> Vec<FieldRef> {
        let own = [
            Field::new(ROW_TIME, time.data_type().clone(), true),
            Field::new(ROW_RULE, DataType::UInt32, false),
        ];
        let constants = self.constants.iter().enumerate();
        let constants = constants
            .map(|(place, value)| Field::new(constant_name(place), value.data_type(), true));
        own.into_iter().chain(constants).map(Arc::new).collect()
    }
}

fn constant_name(place: usize) -> String {
    format!("__constant_{place}")
}

/// `tag = 'text'` of a table, either way round.
fn equality(term: &Expr, table: &TableDef) -> Option<(String, String)> {
    let Expr::BinaryExpr(binary) = term else { return None };
    let (column, value) = match (&*binary.left, &*binary.right) {
        (Expr::Column(column), Expr::Literal(value, _))
        | (Expr::Literal(value, _), Expr::Column(column)) => (column, value),
        _ => return None,
    };
    let value = match value {
        ScalarValue::Dictionary(_, value) => value.as_ref(),
        value => value,
    };
    let text = value.try_as_str().flatten()?;
    let tag = table.schema.tags().find(|tag| tag.name == column.name)?;
    (binary.op == Operator::Eq).then(|| (tag.name.clone(), text.to_owned()))
}

impl Shape {
    /// What tells shapes apart.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The table whose rows it takes.
    pub(crate) fn table(&self) -> TableId {
        self.table
    }

    /// The tag whose value says which rules look at a row, where they say so.
    pub(crate) fn route(&self) -> Option<&str> {
        self.route.as_deref()
    }

    /// The columns of the table that rows need to have for it; `None` where no row matches.
    pub(crate) fn columns(&self) -> Option<impl Iterator<Item = &str>> {
        let input = self.input.as_ref()?;
        let names = input.fields().iter().map(|field| field.name().as_str());
        Some(names.chain([self.time.name().as_str()]).chain(self.route.as_deref()))
    }

    /// The part of committed rows that it looks at; `None` where no row matches.
    ///
    /// # Errors
    /// `internal`.
    pub(crate) fn input(&self, rows: &RecordBatch) -> Result<Option<Input>> {
        let Some(input) = &self.input else { return Ok(None) };
        let time = Arc::new(Schema::new(vec![self.time.clone()]));
        let time = fit(rows, &time)?.column(0).clone();
        let route = self.route.as_deref().and_then(|tag| rows.column_by_name(tag)).cloned();
        Ok(Some(Input { rows: fit(rows, input)?, time, route }))
    }

    /// Evaluates rows for rules, whose constants are given one array a constant, with a value
    /// for each rule.
    ///
    /// # Errors
    /// Those of evaluating its expressions.
    pub(crate) fn run(
        &self,
        input: &Input,
        pairs: &Pairs,
        constants: &[ArrayRef],
    ) -> Result<Output> {
        let Some(schema) = &self.input else {
            return Err(Error::internal("rows for a rule that takes none"));
        };
        let gather = |columns: &[ArrayRef], places: &UInt32Array| {
            let taken = columns.iter().map(|column| take(column, places, None));
            taken.collect::<Result<Vec<_>, _>>().map_err(arrow)
        };
        let columns = gather(input.rows.columns(), &pairs.rows)?;
        let mut extras = gather(std::slice::from_ref(&input.time), &pairs.rows)?;
        extras.push(Arc::new(pairs.rules.clone()));
        extras.extend(gather(constants, &pairs.rules)?);
        let mut rows = Rows::new(schema, columns, extras, pairs.rows.len())?;
        for step in &self.steps {
            if rows.count() == 0 {
                break;
            }
            rows = rows.step(step)?;
        }
        rows.finish(&self.output)
    }
}

/// Rows on their way through the steps: what the steps see, and behind it what travels along.
struct Rows {
    batch: RecordBatch,
    /// How many columns are not of the steps' own.
    extras: usize,
}

impl Rows {
    fn new(
        schema: &SchemaRef,
        mut columns: Vec<ArrayRef>,
        extras: Vec<ArrayRef>,
        count: usize,
    ) -> Result<Rows> {
        let fields = extras.iter().enumerate().map(|(place, column)| {
            let name = match place {
                0 => ROW_TIME.to_owned(),
                1 => ROW_RULE.to_owned(),
                place => constant_name(place - 2),
            };
            Arc::new(Field::new(name, column.data_type().clone(), true))
        });
        let fields: Vec<FieldRef> = schema.fields().iter().cloned().chain(fields).collect();
        let number = extras.len();
        columns.extend(extras);
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let batch =
            RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options);
        Ok(Rows { batch: batch.map_err(arrow)?, extras: number })
    }

    fn count(&self) -> usize {
        self.batch.num_rows()
    }

    fn split(&self) -> (&[ArrayRef], &[ArrayRef]) {
        let columns = self.batch.columns();
        columns.split_at(columns.len() - self.extras)
    }

    fn step(self, step: &Step) -> Result<Rows> {
        let count = self.count();
        match step {
            Step::Filter(predicate) => {
                let kept = predicate.evaluate(&self.batch).map_err(from_engine)?;
                let kept = kept.into_array(count).map_err(from_engine)?;
                let kept: &BooleanArray = as_boolean_array(&kept).map_err(from_engine)?;
                let batch = filter_record_batch(&self.batch, kept).map_err(arrow)?;
                Ok(Rows { batch, ..self })
            }
            Step::Project(exprs, schema) => {
                let columns = exprs.iter().map(|expr| {
                    let value = expr.evaluate(&self.batch).map_err(from_engine)?;
                    value.into_array(count).map_err(from_engine)
                });
                let columns = columns.collect::<Result<Vec<_>>>()?;
                Rows::new(schema, columns, self.split().1.to_vec(), count)
            }
            Step::Rename(schema) => {
                let (columns, extras) = self.split();
                Rows::new(schema, columns.to_vec(), extras.to_vec(), count)
            }
        }
    }

    fn finish(self, output: &SchemaRef) -> Result<Output> {
        let count = self.count();
        let (columns, extras) = self.split();
        let [time, rules, ..] = extras else {
            return Err(Error::internal("rows lost their time"));
        };
        let rules = rules
            .as_primitive_opt()
            .cloned()
            .ok_or_else(|| Error::internal("rows lost their rule"))?;
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let rows = match count {
            0 => RecordBatch::new_empty(output.clone()),
            _ => RecordBatch::try_new_with_options(output.clone(), columns.to_vec(), &options)
                .map_err(arrow)?,
        };
        Ok(Output { rows, times: time.clone(), rules })
    }
}

fn arrow(error: ArrowError) -> Error {
    from_engine(error.into())
}
