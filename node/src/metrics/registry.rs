//! Metrics of this project's prefix, made and registered in one call.

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

/// Name, without the prefix, and help of a metric.
#[derive(Clone, Copy)]
pub struct Description {
    pub name: &'static str,
    pub help: &'static str,
}

fn register<M: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: M,
) -> prometheus::Result<M> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn opts(Description { name, help }: Description) -> Opts {
    Opts::new(format!("bitacora_{name}"), help)
}

/// A counter without labels.
///
/// # Errors
/// When the name is taken.
pub fn counter(registry: &Registry, description: Description) -> prometheus::Result<IntCounter> {
    register(registry, IntCounter::with_opts(opts(description))?)
}

/// A counter for each combination of labels.
///
/// # Errors
/// When the name is taken.
pub fn counters(
    registry: &Registry,
    description: Description,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    register(registry, IntCounterVec::new(opts(description), labels)?)
}

/// A gauge of whole numbers.
///
/// # Errors
/// When the name is taken.
pub fn gauge(registry: &Registry, description: Description) -> prometheus::Result<IntGauge> {
    register(registry, IntGauge::with_opts(opts(description))?)
}

/// A gauge of fractions.
///
/// # Errors
/// When the name is taken.
pub fn float_gauge(registry: &Registry, description: Description) -> prometheus::Result<Gauge> {
    register(registry, Gauge::with_opts(opts(description))?)
}

/// A gauge of whole numbers for each combination of labels.
///
/// # Errors
/// When the name is taken.
pub fn gauges(
    registry: &Registry,
    description: Description,
    labels: &[&str],
) -> prometheus::Result<IntGaugeVec> {
    register(registry, IntGaugeVec::new(opts(description), labels)?)
}

/// A gauge of fractions for each combination of labels.
///
/// # Errors
/// When the name is taken.
pub fn float_gauges(
    registry: &Registry,
    description: Description,
    labels: &[&str],
) -> prometheus::Result<GaugeVec> {
    register(registry, GaugeVec::new(opts(description), labels)?)
}

/// A histogram with these upper bounds.
///
/// # Errors
/// When the name is taken.
pub fn histogram(
    registry: &Registry,
    description: Description,
    buckets: &[f64],
) -> prometheus::Result<Histogram> {
    let opts = HistogramOpts { common_opts: opts(description), buckets: buckets.to_vec() };
    register(registry, Histogram::with_opts(opts)?)
}

/// A histogram of seconds for each combination of labels.
///
/// # Errors
/// When the name is taken.
pub fn histograms(
    registry: &Registry,
    description: Description,
    labels: &[&str],
) -> prometheus::Result<HistogramVec> {
    let opts = HistogramOpts { common_opts: opts(description), buckets: super::SECONDS.to_vec() };
    register(registry, HistogramVec::new(opts, labels)?)
}
