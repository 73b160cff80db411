//! `watch`: what changes, a line for each event, until Ctrl-C.

mod lines;
mod source;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bitacora_client::Watched;
use bitacora_program::console::{nobody_reads, print, tell};
use futures_util::StreamExt as _;
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::block_in_place;
use tokio::time::{MissedTickBehavior, interval_at};

use crate::api::{Api, Failure, Kind};
use crate::cli::{Output, Watch};
use crate::output::{has_colours, per_second};
use crate::stop_signal;
use source::{Events, Silence, Told};

/// Events that are written at once, at most.
const AT_ONCE: usize = 1_000;
/// How often the rate is told, and for how long it is counted.
const RATE: Duration = Duration::from_secs(1);

pub async fn run(api: &Arc<Api>, arguments: &Watch, output: Option<Output>) -> Result<()> {
    let stop = stop_signal()?;
    let mut watching = Watching::new(arguments, Output::of_list(output));
    let outcome = tokio::select! {
        () = stop => Ok(()),
        outcome = async {
            let events = source::begin(api, arguments, watching.silence.clone()).await?;
            watching.follow(events).await
        } => outcome,
    };
    watching.bar.finish_and_clear();
    let error = outcome.as_ref().err();
    let is_read = error.is_none_or(|error| !nobody_reads(error.as_ref()));
    // What was refused would be refused again, and it may be the token.
    let is_refused =
        error.and_then(|error| error.downcast_ref()).is_some_and(|it: &Failure| it.kind == Kind::Refused);
    if is_read && !is_refused && !watching.token.is_empty() {
        tell(format_args!("bitacora: to go on from here: --since {}", watching.token));
    }
    outcome
}

/// A watch that is shown.
struct Watching {
    output: Output,
    values: bool,
    colours: bool,
    /// Sets and deletes that are still to be shown.
    left: u64,
    /// Goes on behind what was shown; empty: there is none yet.
    token: String,
    bar: ProgressBar,
    state: &'static str,
    silence: Silence,
    shown: u64,
    /// What was shown when the rate was told last.
    before: (u64, Instant),
}

impl Watching {
    fn new(arguments: &Watch, output: Output) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        Self {
            output,
            values: !arguments.no_values,
            colours: has_colours(),
            left: arguments.limit.unwrap_or(u64::MAX),
            token: arguments.since.clone().unwrap_or_default(),
            bar,
            state: "catching up",
            silence: Silence::default(),
            shown: 0,
            before: (0, Instant::now()),
        }
    }

    /// Shows events until there are enough.
    async fn follow(&mut self, events: Events) -> Result<()> {
        let mut events = events.ready_chunks(AT_ONCE);
        let mut ticks = interval_at(tokio::time::Instant::now() + RATE, RATE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.left > 0 {
            tokio::select! {
                told = events.next() => {
                    let Some(told) = told else { return Ok(()) };
                    self.show(told)?;
                }
                _ = ticks.tick() => self.tell_rate(),
            }
        }
        Ok(())
    }

    fn show(&mut self, events: Vec<Result<Told, crate::api::Failure>>) -> Result<()> {
        let (mut text, mut token, mut failed) = (String::new(), None, None);
        for told in events {
            let told = match told {
                Ok(told) => told,
                Err(failure) => {
                    failed = Some(failure);
                    break;
                }
            };
            text += &self.line(&told)?;
            self.note(&told);
            token = Some(told.token);
            if self.left == 0 {
                break;
            }
        }
        if !text.is_empty() {
            block_in_place(|| self.bar.suspend(|| print(text)))?;
        }
        self.token = token.unwrap_or_else(|| std::mem::take(&mut self.token));
        failed.map_or(Ok(()), |failure| Err(failure.into()))
    }

    fn line(&self, told: &Told) -> Result<String> {
        Ok(match self.output {
            Output::Json => lines::json(told, self.values)?,
            Output::Raw => lines::raw(told),
            Output::Table => lines::for_the_eye(told, self.values, self.colours),
        })
    }

    fn note(&mut self, told: &Told) {
        match told.what {
            Watched::Set(_) | Watched::Deleted(_) => {
                self.left -= 1;
                self.shown += 1;
            }
            Watched::Current { .. } => self.state = "current",
            Watched::Gap { .. } => self.state = "catching up",
            _ => {}
        }
    }

    /// Beside the lines, if stderr is a terminal.
    fn tell_rate(&mut self) {
        let (shown, since) = self.before;
        let rate = per_second(self.shown - shown, since.elapsed());
        self.before = (self.shown, Instant::now());
        self.bar.set_message(self.how_it_goes(rate));
        self.bar.tick();
    }

    /// `rate`: of the events, a second.
    fn how_it_goes(&self, rate: f64) -> String {
        let (shown, rate) = (HumanCount(self.shown), HumanCount(rate.round() as u64));
        let state = if self.silence.is_now() { "no node answers, trying again" } else { self.state };
        format!("{shown} events, {rate}/s, {state}; Ctrl-C ends it")
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn while_no_node_answers_it_does_not_say_current() {
        let Command::Watch(arguments) = Cli::parse_from(["bitacora", "watch"]).command else {
            panic!("another command")
        };
        let mut watching = Watching::new(&arguments, Output::Table);
        let silence = watching.silence.clone();
        let current = Watched::Current { positions: Vec::new() };
        watching.note(&Told { what: current, token: String::new() });
        assert_eq!(watching.how_it_goes(0.0), "0 events, 0/s, current; Ctrl-C ends it");
        silence.note(true);
        assert_eq!(watching.how_it_goes(0.0), "0 events, 0/s, no node answers, trying again; Ctrl-C ends it");
        silence.note(false);
        assert_eq!(watching.how_it_goes(0.0), "0 events, 0/s, current; Ctrl-C ends it");
    }
}
