//! Metrics of this project's prefix, made and registered in one call. Each call takes the name without the prefix, and the help.

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

/// Declares a struct of metrics and `register`, which makes them. Each stands there once: its field, and after `=` the function that
/// makes it, without the registry, which is that function's first argument.
macro_rules! declare_metrics {
    (
        $(#[$attribute:meta])*
        $visibility:vis struct $name:ident {
            $($field_visibility:vis $field:ident: $type:ty = $($make:ident)::+($($argument:expr),* $(,)?),)+
        }
    ) => {
        $(#[$attribute])*
        $visibility struct $name {
            $($field_visibility $field: $type,)+
        }

        impl $name {
            /// Fails if a name is taken.
            pub(crate) fn register(registry: &::prometheus::Registry) -> ::prometheus::Result<Self> {
                Ok(Self { $($field: $($make)::+(registry $(, $argument)*)?,)+ })
            }
        }
    };
}

pub(crate) use declare_metrics;

fn register<M: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: M,
) -> prometheus::Result<M> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("bitacora_{name}"), help)
}

/// A counter without labels.
///
/// # Errors
/// When the name is taken.
pub fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    register(registry, IntCounter::with_opts(opts(name, help))?)
}

/// A counter for each combination of labels.
///
/// # Errors
/// When the name is taken.
pub fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    register(registry, IntCounterVec::new(opts(name, help), labels)?)
}

/// A gauge of whole numbers.
///
/// # Errors
/// When the name is taken.
pub fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    register(registry, IntGauge::with_opts(opts(name, help))?)
}

/// A gauge of fractions.
///
/// # Errors
/// When the name is taken.
pub fn float_gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<Gauge> {
    register(registry, Gauge::with_opts(opts(name, help))?)
}

/// A gauge of whole numbers for each combination of labels.
///
/// # Errors
/// When the name is taken.
pub fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntGaugeVec> {
    register(registry, IntGaugeVec::new(opts(name, help), labels)?)
}

/// A gauge of fractions for each combination of labels.
///
/// # Errors
/// When the name is taken.
pub fn float_gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<GaugeVec> {
    register(registry, GaugeVec::new(opts(name, help), labels)?)
}

/// A histogram with these upper bounds.
///
/// # Errors
/// When the name is taken.
pub fn histogram(
    registry: &Registry,
    name: &str,
    help: &str,
    buckets: &[f64],
) -> prometheus::Result<Histogram> {
    let opts = HistogramOpts { common_opts: opts(name, help), buckets: buckets.to_vec() };
    register(registry, Histogram::with_opts(opts)?)
}

/// A histogram of seconds for each combination of labels.
///
/// # Errors
/// When the name is taken.
pub fn histograms(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<HistogramVec> {
    let opts = HistogramOpts { common_opts: opts(name, help), buckets: super::SECONDS.to_vec() };
    register(registry, HistogramVec::new(opts, labels)?)
}
