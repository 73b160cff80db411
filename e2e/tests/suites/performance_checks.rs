//! What the benchmark suite makes of its figures: the table, the charts, the page, and what it says has become worse.

use anyhow::{Result, ensure};
use e2e::figures::Spread;
use e2e::measure::child::Measured;
use e2e::measure::results::{Results, root};
use e2e::measure::row::{Better, Figure, Row, Series, Target};
use e2e::measure::{charts, kept, page, table};
use e2e::runner::{Ctx, Test};
use e2e::tests;

pub fn tests() -> Vec<Test> {
    tests![
        Nothing: only_what_is_worse_than_the_noise_is_told,
            ratios_are_of_pairs_of_rounds,
            a_peer_that_is_not_installed_is_named,
            a_part_that_ran_again_replaces_its_rows,
            the_page_has_a_place_for_the_table,
            charts_are_whole
    ]
}

fn row(part: &str, better: Better, [least, median, most]: [f64; 3]) -> Row {
    let row = Row::beside((part, "work <&\">", "peer"), "calls/s", better, &[1.0], Some(&[1.0]));
    Row { ratio: Some(Spread { median, least, most }), ..row }.target(Target::Ratio(0.9))
}

fn results(rows: Vec<Row>) -> Results {
    Results { rows, ..Results::default() }
}

async fn only_what_is_worse_than_the_noise_is_told(_: Ctx) -> Result<()> {
    let cases = [
        (Better::Higher, [0.9, 1.0, 1.2], vec![(0.8, true), (0.89, true), (0.91, false), (2.0, false)]),
        (Better::Lower, [0.99, 1.0, 1.01], vec![(0.5, false), (1.05, false), (1.2, true)]),
    ];
    for (better, known, now) in cases {
        let kept = results(vec![row("get", better, known)]);
        for (ratio, worse) in now {
            let told = kept::compare(&results(vec![row("get", better, [ratio; 3])]), &kept);
            ensure!(told.len() == 1 + usize::from(worse), "{better:?}, {ratio}: {told:?}");
            ensure!(told[0].starts_with("worse: work") == worse, "{told:?}");
        }
    }
    Ok(())
}

async fn ratios_are_of_pairs_of_rounds(_: Ctx) -> Result<()> {
    let rounds = |rates: [f64; 3]| rates.map(|rate| Measured { rate, cpu: 2.0, ..Measured::default() });
    let (ours, theirs) = (rounds([10.0, 20.0, 30.0]), rounds([20.0, 20.0, 20.0]));
    let row = Row::of_rounds(("get", "GET", "peer"), Figure::Rate("calls/s"), &ours, Some(&theirs));
    let Some(Spread { median, least, most }) = row.ratio else { anyhow::bail!("no ratio") };
    ensure!([least, median, most] == [0.5, 1.0, 1.5], "{least} {median} {most}");
    ensure!(row.clone().target(Target::Ratio(1.0)).reached() == Some(true));
    ensure!(row.target(Target::Ratio(1.1)).reached() == Some(false));
    Ok(())
}

async fn a_peer_that_is_not_installed_is_named(_: Ctx) -> Result<()> {
    let ours = [Measured { rate: 12_345.6, cpu: 1.234, ..Measured::default() }];
    let row = Row::of_rounds(("get", "GET", "nginx"), Figure::Rate("calls/s"), &ours, None);
    let (text, markdown) = (table::text(std::slice::from_ref(&row)), table::markdown(&[row]));
    for table in [&text, &markdown] {
        ensure!(table.contains("nginx") && table.contains("not found"), "{table}");
        ensure!(table.contains("12,346") && table.contains("1.23, -"), "{table}");
    }
    Ok(())
}

async fn a_part_that_ran_again_replaces_its_rows(_: Ctx) -> Result<()> {
    let one = |part, ratio| row(part, Better::Higher, [ratio; 3]);
    let before = results(vec![one("set", 1.0), one("get", 2.0)]);
    let mut after = before.replaced_by(results(vec![one("get", 3.0)]));
    after.sort(&["get", "set"]);
    let text = serde_json::to_string(&after)?;
    let read: Results = serde_json::from_str(&text)?;
    let ratios: Vec<_> = read.rows.iter().filter_map(|row| Some(row.ratio?.median)).collect();
    ensure!(ratios == [3.0, 1.0], "{ratios:?}");
    Ok(())
}

async fn the_page_has_a_place_for_the_table(_: Ctx) -> Result<()> {
    let text = std::fs::read_to_string(root().join("docs/performance.md"))?;
    let (once, twice) = (page::with_table(&text, "first\n")?, page::with_table(&text, "second\n")?);
    ensure!(page::with_table(&once, "second\n")? == twice && !twice.contains("first\n"), "{twice}");
    ensure!(twice.len() > 1000, "nothing but the table is left");
    ensure!(page::with_table("no place", "table").is_err());
    Ok(())
}

async fn charts_are_whole(_: Ctx) -> Result<()> {
    let mut results = results(vec![
        row("get", Better::Higher, [0.5, 1.0, 20.0]),
        row("cliffs", Better::Lower, [0.01, 1.0, 2.0]),
    ]);
    let points = vec![(1e4, 2.0), (1e6, 3.0)];
    results.series.push(Series { part: "curve".to_owned(), name: "get".to_owned(), points });
    let charts = charts::all(&results);
    ensure!(charts.len() == 3, "{} charts", charts.len());
    for (name, title, svg) in charts {
        ensure!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{name}: {svg}");
        ensure!(svg.contains(title) && !svg.contains("NaN") && !svg.contains("inf"), "{name}: {svg}");
        ensure!(!svg.contains("work <&"), "{name}: a text is not escaped: {svg}");
    }
    Ok(())
}
