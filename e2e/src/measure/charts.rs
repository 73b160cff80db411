//! Charts of a run, as SVG that needs nothing: who looks at it brings the fonts.

use std::fmt::Write as _;

use super::results::Results;
use super::row::{Better, Row, Series, Target};
use super::table::number;
use crate::figures::Spread;

const WIDTH: f64 = 900.0;
/// Where the bars begin: their names are to the left.
const LEFT: f64 = 430.0;
const RIGHT: f64 = WIDTH - 70.0;
const ROW: f64 = 22.0;
const TOP: f64 = 60.0;
const BLUE: &str = "#3565a8";
const ORANGE: &str = "#b8580f";
const COLOURS: [&str; 4] = [BLUE, ORANGE, "#2e7d4f", "#7a4fa0"];

/// The file, the title and the text of each chart that there are figures for.
pub fn all(results: &Results) -> Vec<(&'static str, &'static str, String)> {
    let rows = |of_cliffs: bool| {
        let rows = results.rows.iter().filter(|row| row.ratio.is_some());
        rows.filter(|row| (row.part == "cliffs") == of_cliffs).collect::<Vec<_>>()
    };
    let (ratios, cliffs) = (rows(false), rows(true));
    let curves: Vec<_> = results.series.iter().filter(|series| series.part == "curve").collect();
    let mut charts = Vec::new();
    if !ratios.is_empty() {
        let title = "Beside each peer in the same run: to the right of 1 is better; red: the target";
        charts.push(("ratios.svg", title, bars(title, &ratios)));
    }
    if !cliffs.is_empty() {
        let title =
            "Small reads beside a disturbance: to the right of 1 is better than its peer; red: the target";
        charts.push(("cliffs.svg", title, bars(title, &cliffs)));
    }
    if !curves.is_empty() {
        let title = "The cost by the number of keys, in parts of the first size's";
        charts.push(("curve.svg", title, lines(title, &curves)));
    }
    charts
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// An SVG of this height with a title.
fn frame(title: &str, height: f64, content: &str) -> String {
    let title = escaped(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\" role=\"img\" aria-label=\"{title}\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"15\" fill=\"#222222\">{title}</text>\n{content}</svg>\n"
    )
}

fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let text = escaped(text);
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#222222\">{text}</text>"
    );
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64), stroke: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(
        out,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{stroke}\"/>"
    );
}

/// A ratio such that more of it is better.
fn goodness(better: Better, ratio: f64) -> f64 {
    if better == Better::Higher { ratio } else { 1.0 / ratio }
}

/// On a logarithmic scale from a tenth to ten; what lies beyond is drawn at its end.
fn scale(value: f64) -> f64 {
    let part = (value.clamp(0.1, 10.0).log10() + 1.0) / 2.0;
    LEFT + part * (RIGHT - LEFT)
}

/// A bar for each row, with the spread of its rounds, and its target as a stroke.
fn bars(title: &str, rows: &[&Row]) -> String {
    let height = TOP + ROW * rows.len() as f64 + 20.0;
    let mut out = String::new();
    for tick in [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0] {
        let x = scale(tick);
        line(&mut out, (x, TOP - 8.0), (x, height - 16.0), if tick == 1.0 { "#222222" } else { "#dddddd" });
        text(&mut out, (x, TOP - 12.0), "middle", &tick.to_string());
    }
    for (index, row) in rows.iter().enumerate() {
        let Some(Spread { median, least, most }) = row.ratio else { continue };
        let y = TOP + ROW * index as f64;
        text(&mut out, (LEFT - 8.0, y + 13.0), "end", &label(row));
        let [x, from, to] = [median, least, most].map(|ratio| scale(goodness(row.better, ratio)));
        let colour = if goodness(row.better, median) < 1.0 { ORANGE } else { BLUE };
        let (start, width) = (x.min(scale(1.0)), (x - scale(1.0)).abs().max(1.0));
        let _ = writeln!(
            out,
            "<rect x=\"{start:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"14\" fill=\"{colour}\"/>",
            y + 2.0
        );
        line(&mut out, (from, y + 9.0), (to, y + 9.0), "#222222");
        if let Some(Target::Ratio(target)) = row.target {
            let x = scale(goodness(row.better, target));
            line(&mut out, (x, y), (x, y + 18.0), "#c00000");
        }
        text(&mut out, (RIGHT + 8.0, y + 13.0), "start", &format!("{median:.2}"));
    }
    frame(title, height, &out)
}

/// What a row compares, cut to what fits in front of a bar. The work is cut, so that rows of the same work still say what it is compared with.
fn label(row: &Row) -> String {
    const FITS: usize = 66;
    let peer = row.peer.as_deref().map(|peer| format!(" / {peer}")).unwrap_or_default();
    let end = format!(": {}{peer}", row.figure);
    let room = FITS.saturating_sub(end.chars().count());
    if row.work.chars().count() <= room {
        return format!("{}{end}", row.work);
    }
    row.work.chars().take(room.saturating_sub(1)).chain(['…']).chain(end.chars()).collect()
}

/// Curves over a logarithmic axis, each in parts of its first point.
fn lines(title: &str, series: &[&Series]) -> String {
    const HEIGHT: f64 = 380.0;
    const BOTTOM: f64 = HEIGHT - 40.0;
    const BEGIN: f64 = 60.0;
    const END: f64 = WIDTH - 260.0;
    let points = || series.iter().flat_map(|series| &series.points);
    let least = points().map(|(x, _)| *x).fold(f64::INFINITY, f64::min).log10();
    let most = points().map(|(x, _)| *x).fold(0.0, f64::max).log10();
    let across = |x: f64| BEGIN + (x.log10() - least) / (most - least).max(1e-9) * (END - BEGIN);
    let relative = |series: &Series, y: f64| y / series.points.first().map_or(1.0, |(_, first)| *first);
    let highest = series.iter().flat_map(|series| series.points.iter().map(|(_, y)| relative(series, *y)));
    let highest = highest.fold(2.0, f64::max).ceil();
    let up = |y: f64| BOTTOM - y / highest * (BOTTOM - TOP);
    let mut out = String::new();
    let steps = highest as usize;
    for step in 0..=steps {
        let y = up(step as f64);
        line(&mut out, (BEGIN, y), (END, y), if step == 1 { "#222222" } else { "#dddddd" });
        text(&mut out, (BEGIN - 8.0, y + 4.0), "end", &step.to_string());
    }
    for (index, series) in series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let places: Vec<_> =
            series.points.iter().map(|(x, y)| (across(*x), up(relative(series, *y)))).collect();
        for ((x, y), (keys, _)) in places.iter().zip(&series.points) {
            let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>");
            if index == 0 {
                text(&mut out, (*x, BOTTOM + 18.0), "middle", &number(*keys));
            }
        }
        let path: Vec<_> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let path = path.join(" ");
        let _ = writeln!(
            out,
            "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
        );
        let y = TOP + 20.0 * index as f64;
        let _ = writeln!(
            out,
            "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>",
            END + 16.0
        );
        text(&mut out, (END + 34.0, y + 11.0), "start", &series.name);
    }
    frame(title, HEIGHT, &out)
}
