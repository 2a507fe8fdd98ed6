//! Reading a table: a plain specification of what to read, and the operator that reads it.
//!
//! A [`ScanSpec`] is data and could travel to another machine; the [`ScanEnv`] that turns it
//! into rows cannot. Locally the environment is the table's pinned version: the sources that
//! can hold wanted rows, grouped by where rows may repeat. Only those groups pay for merging.
//! Where the newest or oldest rows are wanted first they are read first, so that what the query
//! has learned by then ([`Learned`]) keeps the rest from being opened.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{ColumnStatistics, DataFusionError, Result, ScalarValue, Statistics};
use datafusion::config::ConfigOptions;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::filter_pushdown::{
    ChildPushdownResult, FilterPushdownPhase, FilterPushdownPropagation,
};
use datafusion::physical_plan::metrics::{
    BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
    SortOrderPushdownResult,
};
use futures::stream;
use kymo_kernel::ids::{MetaVersion, Position, SegmentId, TableId, TimeRange};
use kymo_kernel::observe::Trace;
use kymo_kernel::schema::{ColumnKind, TableName};
use kymo_kernel::storage::conform::shape;
use kymo_kernel::storage::memtable::MemView;
use kymo_kernel::storage::merge::{self, GroupScan};
use kymo_kernel::storage::narrow::narrow;
use kymo_kernel::storage::overlap::{Group, Source, groups};
use kymo_kernel::storage::segment::Scan;
use kymo_kernel::storage::version::Version;
use serde::{Deserialize, Serialize};

use super::filter::Wanted;
use super::learned::{Learned, is_time};

/// Below this many rows one partition is faster than handing work to other threads.
const ROWS_WORTH_A_PARTITION: u64 = 65_536;

/// What to read, as plain data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ScanSpec {
    /// The table.
    pub(crate) table: TableId,
    /// Its name, for people.
    pub(crate) name: TableName,
    /// The metadata that the plan was made with.
    pub(crate) snapshot: MetaVersion,
    /// Places of the wanted columns in the table's schema.
    pub(crate) projection: Vec<usize>,
    /// The wanted times.
    pub(crate) time: TimeRange,
    /// The wanted tag values, by place among the tags; `None` is NULL.
    pub(crate) tags: Vec<(usize, Vec<Option<String>>)>,
    /// The segments that can hold wanted rows.
    pub(crate) files: Vec<SegmentId>,
    /// Rows that are in memory of their owner only, up to the watermark.
    pub(crate) hot: Vec<HotRange>,
    /// Rows after which reading may stop.
    pub(crate) limit: Option<usize>,
}

/// Rows of a partition that are in no segment yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct HotRange {
    /// The newest position that shows.
    pub(crate) upto: Position,
}

/// Where a specification finds its rows.
pub(crate) trait ScanEnv: fmt::Debug + Send + Sync {
    /// The version of the table that the specification was made for.
    fn version(&self) -> &Arc<Version>;
}

/// This process: the version is pinned for as long as the plan lives.
#[derive(Debug)]
pub(crate) struct Local(pub(crate) Arc<Version>);

impl ScanEnv for Local {
    fn version(&self) -> &Arc<Version> {
        &self.0
    }
}

/// A part of a scan that one thread reads from start to end.
#[derive(Debug, Clone)]
enum Unit {
    /// Rows of one source that repeat nowhere.
    Alone(Source),
    /// Sources whose rows must be compared.
    Merge(Group),
}

impl Unit {
    /// Its name in traces.
    fn step(&self) -> &'static str {
        match self {
            Unit::Alone(Source::Segment(_)) => "scan segment",
            Unit::Alone(_) => "scan memory",
            Unit::Merge(_) => "scan and merge",
        }
    }

    fn rows(&self) -> u64 {
        match self {
            Unit::Alone(source) => source.rows(),
            Unit::Merge(group) => group.sources.iter().map(Source::rows).sum(),
        }
    }

    /// The times that it may have rows of.
    fn time(&self) -> TimeRange {
        let time = match self {
            Unit::Alone(source) => source.time(),
            Unit::Merge(group) => {
                let times = group.sources.iter().filter_map(Source::time);
                times.reduce(|all, each| all.union(&each))
            }
        };
        time.unwrap_or(TimeRange::ALL)
    }
}

/// Which rows are read first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Oldest,
    Newest,
}

/// Reads a table.
#[derive(Debug, Clone)]
pub(crate) struct TsScanExec {
    spec: ScanSpec,
    env: Arc<dyn ScanEnv>,
    output: SchemaRef,
    partitions: Vec<Vec<Unit>>,
    first: Option<First>,
    learned: Learned,
    statistics: Arc<Statistics>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
    /// The trace of the query; plans run on tasks that know nothing of it.
    trace: Trace,
}

impl TsScanExec {
    /// Plans a scan of a version over at most `partitions` threads.
    pub(super) fn new(
        version: Arc<Version>,
        snapshot: MetaVersion,
        projection: Vec<usize>,
        wanted: &Wanted,
        limit: Option<usize>,
        partitions: usize,
    ) -> Result<Self> {
        let table = version.table.clone();
        let output = Arc::new(table.schema.arrow().project(&projection)?);
        let found = if wanted.is_nothing() {
            Vec::new()
        } else {
            groups(&version, &wanted.time, &wanted.tag_filter())
        };
        let statistics = Arc::new(statistics(&output, &found, wanted));
        let units = units(found);
        let spec = ScanSpec {
            table: table.id,
            name: table.name.clone(),
            snapshot,
            projection,
            time: wanted.time,
            tags: wanted
                .tags
                .iter()
                .map(|(at, values)| (*at, values.iter().cloned().collect()))
                .collect(),
            files: files(&units),
            hot: vec![HotRange { upto: version.watermark }],
            limit,
        };
        let partitions = spread(units, partitions);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(output.clone()),
            Partitioning::UnknownPartitioning(partitions.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(TsScanExec {
            spec,
            env: Arc::new(Local(version)),
            output,
            partitions,
            first: None,
            learned: Learned::default(),
            statistics,
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
            trace: Trace::here(),
        })
    }

    /// The same with the parts of each thread in the order of their times.
    fn in_order(&self, first: First) -> Self {
        let mut scan = TsScanExec { first: Some(first), ..self.clone() };
        for units in &mut scan.partitions {
            match first {
                First::Oldest => units.sort_by_key(|unit| unit.time().first),
                First::Newest => units.sort_by_key(|unit| Reverse(unit.time().last)),
            }
        }
        scan
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            time: self.spec.time,
            tags: self
                .spec
                .tags
                .iter()
                .map(|(at, values)| (*at, values.iter().cloned().collect()))
                .collect(),
        }
    }
}

fn units(found: Vec<Group>) -> Vec<Unit> {
    found
        .into_iter()
        .flat_map(|mut group| {
            if group.dedup {
                return vec![Unit::Merge(group)];
            }
            group.sources.drain(..).map(Unit::Alone).collect()
        })
        .collect()
}

fn files(units: &[Unit]) -> Vec<SegmentId> {
    let sources = units.iter().flat_map(|unit| match unit {
        Unit::Alone(source) => std::slice::from_ref(source),
        Unit::Merge(group) => &group.sources,
    });
    sources
        .filter_map(|source| match source {
            Source::Segment(segment) => Some(segment.meta().id),
            Source::Frozen(_) | Source::Hot(_) => None,
        })
        .collect()
}

/// Deals the units to partitions, the largest first, each to the one with the least to do.
fn spread(mut units: Vec<Unit>, most: usize) -> Vec<Vec<Unit>> {
    let rows: u64 = units.iter().map(Unit::rows).sum();
    let worth = usize::try_from(rows / ROWS_WORTH_A_PARTITION).unwrap_or(usize::MAX);
    let count = most.min(worth).min(units.len()).max(1);
    let mut partitions: Vec<(u64, Vec<Unit>)> = vec![(0, Vec::new()); count];
    units.sort_by_key(|unit| std::cmp::Reverse(unit.rows()));
    for unit in units {
        if let Some(least) = partitions.iter_mut().min_by_key(|(rows, _)| *rows) {
            least.0 += unit.rows();
            least.1.push(unit);
        }
    }
    partitions.into_iter().map(|(_, units)| units).collect()
}

/// What is known without reading: the number of rows where none repeats, and the times.
fn statistics(output: &SchemaRef, found: &[Group], wanted: &Wanted) -> Statistics {
    let rows: u64 = found.iter().flat_map(|group| &group.sources).map(Source::rows).sum();
    let rows = usize::try_from(rows).unwrap_or(usize::MAX);
    let everything = wanted.is_everything();
    let exact = everything && found.iter().all(|group| !group.dedup);
    let num_rows = if exact { Precision::Exact(rows) } else { Precision::Inexact(rows) };
    let times = found
        .iter()
        .flat_map(|group| &group.sources)
        .filter_map(Source::time)
        .reduce(|all, each| all.union(&each));
    let columns = output.fields().iter().map(|field| {
        let mut column = ColumnStatistics::new_unknown();
        if ColumnKind::of(field) == ColumnKind::Time
            && let Some(times) = times
        {
            let bound = |at: i64| {
                let value = ScalarValue::TimestampNanosecond(Some(at), Some("+00:00".into()));
                if everything { Precision::Exact(value) } else { Precision::Inexact(value) }
            };
            column.null_count = Precision::Exact(0);
            column.min_value = bound(times.first);
            column.max_value = bound(times.last);
        }
        column
    });
    Statistics {
        num_rows,
        total_byte_size: Precision::Absent,
        column_statistics: columns.collect(),
    }
}

impl DisplayAs for TsScanExec {
    fn fmt_as(&self, _kind: DisplayFormatType, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut segments, mut memory, mut merged) = (0, 0, 0);
        for unit in self.partitions.iter().flatten() {
            let sources = match unit {
                Unit::Alone(source) => std::slice::from_ref(source),
                Unit::Merge(group) => {
                    merged += 1;
                    &group.sources
                }
            };
            for source in sources {
                match source {
                    Source::Segment(_) => segments += 1,
                    Source::Frozen(_) | Source::Hot(_) => memory += 1,
                }
            }
        }
        write!(
            out,
            "TsScanExec: table={}, partitions={}, segments={segments}, memory={memory}, merged={merged}",
            self.spec.name,
            self.partitions.len()
        )?;
        if self.env.version().table.options.append_only {
            out.write_str(", append_only")?;
        }
        if self.spec.time != TimeRange::ALL {
            write!(out, ", time={}..={}", self.spec.time.first, self.spec.time.last)?;
        }
        for (place, values) in &self.spec.tags {
            let tag = self.env.version().table.schema.tags().nth(*place);
            let shown: Vec<&str> =
                values.iter().take(5).map(|value| value.as_deref().unwrap_or("NULL")).collect();
            let name = tag.map_or("?", |tag| tag.name.as_str());
            write!(out, ", {name} in [{}]", shown.join(", "))?;
        }
        match self.first {
            Some(First::Oldest) => out.write_str(", oldest first")?,
            Some(First::Newest) => out.write_str(", newest first")?,
            None => {}
        }
        match self.spec.limit {
            Some(limit) => write!(out, ", limit={limit}"),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for TsScanExec {
    fn name(&self) -> &str {
        "TsScanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() {
            return Ok(self);
        }
        Err(DataFusionError::Internal("a scan has no inputs".to_owned()))
    }

    /// What was learned belongs to one run.
    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        let learned = Learned::default();
        Ok(Arc::new(TsScanExec { learned, ..Arc::unwrap_or_clone(self) }))
    }

    fn try_pushdown_sort(
        &self,
        order: &[PhysicalSortExpr],
    ) -> Result<SortOrderPushdownResult<Arc<dyn ExecutionPlan>>> {
        let Some(key) = order.first() else { return Ok(SortOrderPushdownResult::Unsupported) };
        let column = key.expr.downcast_ref::<Column>();
        if !column.is_some_and(|column| is_time(&self.output, column.index())) {
            return Ok(SortOrderPushdownResult::Unsupported);
        }
        let first = if key.options.descending { First::Newest } else { First::Oldest };
        Ok(SortOrderPushdownResult::Inexact { inner: Arc::new(self.in_order(first)) })
    }

    /// Takes no condition off anybody's hands, and looks at those that say more while the query
    /// runs.
    fn handle_child_pushdown_result(
        &self,
        phase: FilterPushdownPhase,
        given: ChildPushdownResult,
        _config: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn ExecutionPlan>>> {
        let conditions = given.parent_filters.iter().map(|given| given.filter.clone()).collect();
        let mut answer: FilterPushdownPropagation<Arc<dyn ExecutionPlan>> =
            FilterPushdownPropagation::all_unsupported(given);
        let learned = Learned::of(conditions, &self.output);
        if matches!(phase, FilterPushdownPhase::Post) && !learned.is_empty() {
            answer.updated_node = Some(Arc::new(TsScanExec { learned, ..self.clone() }));
        }
        Ok(answer)
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Arc<Statistics>> {
        Ok(match partition {
            None => self.statistics.clone(),
            Some(_) if self.partitions.len() == 1 => self.statistics.clone(),
            Some(_) => Arc::new(Statistics::new_unknown(&self.output)),
        })
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let units = self.partitions.get(partition).cloned().unwrap_or_default();
        let wanted = self.wanted();
        let scan = Scan {
            output: self.output.clone(),
            tags: wanted.tag_filter(),
            time: wanted.time,
            batch_rows: context.session_config().batch_size(),
        };
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let rows = Rows {
            version: self.env.version().clone(),
            scan,
            units: units.into(),
            learned: self.learned.clone(),
            skipped: MetricBuilder::new(&self.metrics).counter("skipped", partition),
            current: None,
            left: self.spec.limit,
            trace: self.trace.child("scan"),
            step: Trace::none(),
        };
        let rows = rows.map(move |batch| {
            let batch = batch.map_err(|error| DataFusionError::External(Box::new(error)))?;
            metrics.record_output(batch.num_rows());
            Ok(batch)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.output.clone(), stream::iter(rows))))
    }
}

type Batches = Box<dyn Iterator<Item = kymo_kernel::Result<RecordBatch>> + Send>;

/// The rows of one partition, unit by unit; a unit is opened when the one before has ended.
struct Rows {
    version: Arc<Version>,
    scan: Scan,
    units: VecDeque<Unit>,
    learned: Learned,
    /// How many units were never opened.
    skipped: Count,
    current: Option<Batches>,
    left: Option<usize>,
    /// From the first row asked for to the last.
    trace: Trace,
    /// The same for the present unit.
    step: Trace,
}

impl Rows {
    /// Lets go of the units in which nothing is wanted any more.
    fn skip(&mut self) {
        let times = || self.units.iter().map(Unit::time).collect();
        let Some(wanted) = self.learned.wanted(&self.scan.output, times) else { return };
        let before = self.units.len();
        let mut wanted = wanted.into_iter();
        self.units.retain(|_| wanted.next().unwrap_or(true));
        self.skipped.add(before - self.units.len());
    }
}

impl Iterator for Rows {
    type Item = kymo_kernel::Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.left == Some(0) {
                return None;
            }
            let Some(current) = &mut self.current else {
                self.skip();
                let unit = self.units.pop_front()?;
                self.step = self.trace.child(unit.step());
                match open(&self.version, &self.scan, unit) {
                    Ok(batches) => self.current = Some(batches),
                    Err(error) => return Some(Err(error)),
                }
                continue;
            };
            match current.next() {
                None => (self.current, self.step) = (None, Trace::none()),
                Some(Ok(batch)) if batch.num_rows() == 0 => {}
                Some(Ok(batch)) => {
                    let take =
                        self.left.map_or(batch.num_rows(), |left| left.min(batch.num_rows()));
                    self.left = self.left.map(|left| left - take);
                    return Some(narrow(batch.slice(0, take)));
                }
                Some(Err(error)) => {
                    // Nothing that follows an error can be trusted.
                    self.left = Some(0);
                    return Some(Err(error));
                }
            }
        }
    }
}

fn open(version: &Arc<Version>, scan: &Scan, unit: Unit) -> kymo_kernel::Result<Batches> {
    Ok(match unit {
        Unit::Alone(Source::Segment(segment)) => {
            let batches = segment.reader()?.scan(scan)?;
            // The file may go once the last reference to the segment does.
            Box::new(batches.inspect(move |_| {
                let _held = &segment;
            }))
        }
        Unit::Alone(Source::Frozen(frozen)) => memory(frozen.rows.clone(), scan),
        Unit::Alone(Source::Hot(rows)) => memory(rows, scan),
        Unit::Merge(group) => merged(version, scan, group)?,
    })
}

/// Rows in memory as they came, in the columns that are wanted.
fn memory(rows: MemView, scan: &Scan) -> Batches {
    let output = scan.output.clone();
    let time = scan.time;
    let batch_rows = scan.batch_rows;
    let mut next = 0;
    let runs = std::iter::from_fn(move || {
        let run = rows.runs().get(next)?.clone();
        next += 1;
        Some(run)
    });
    let shaped = runs.filter(move |run| run.time.overlaps(&time)).flat_map(move |run| {
        let shaped = shape(&run.batch, &output);
        slices(shaped, batch_rows)
    });
    Box::new(shaped)
}

fn slices(
    batch: kymo_kernel::Result<RecordBatch>,
    rows: usize,
) -> Vec<kymo_kernel::Result<RecordBatch>> {
    match batch {
        Ok(batch) if batch.num_rows() > rows => (0..batch.num_rows())
            .step_by(rows.max(1))
            .map(|from| Ok(batch.slice(from, rows.min(batch.num_rows() - from))))
            .collect(),
        other => vec![other],
    }
}

/// Rows of sources that may repeat each other: sorted, compared, each once.
fn merged(version: &Arc<Version>, scan: &Scan, group: Group) -> kymo_kernel::Result<Batches> {
    let wanted = GroupScan {
        output: scan.output.clone(),
        tags: scan.tags.clone(),
        time: scan.time,
        batch_rows: scan.batch_rows,
    };
    let batches = merge::open(&group, &version.table, &wanted)?;
    // The files may go once the last reference to their segments does.
    Ok(Box::new(batches.inspect(move |_| {
        let _held = &group;
    })))
}
