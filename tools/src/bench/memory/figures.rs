//! The table of `plait bench memory` as diagrams.
#![forbid(unsafe_code)]

use super::super::plot::{Content, Panel, Scale};
use super::{Case, Outcome};
use std::collections::BTreeMap;

/// What may run to the right.
struct Axis {
    name: &'static str,
    scale: Scale,
    of: fn(&Case) -> f64,
}

const AXES: [Axis; 3] = [
    Axis { name: "subflows", scale: Scale::Whole, of: |case| f64::from(case.subflows) },
    Axis { name: "connections", scale: Scale::Logarithmic, of: |case| f64::from(case.connections) },
    Axis { name: "workers", scale: Scale::Whole, of: |case| f64::from(case.workers) },
];

impl Axis {
    fn varies(&self, outcomes: &[&Outcome]) -> bool {
        outcomes.windows(2).any(|pair| (self.of)(&pair[0].case) != (self.of)(&pair[1].case))
    }
}

/// For each axis along which something varies, with offloads and without: a line for each combination of what else does.
pub fn panels(results: &[Outcome]) -> Vec<Panel> {
    let all: Vec<&Outcome> = results.iter().collect();
    let mut varying: Vec<&Axis> = AXES.iter().filter(|axis| axis.varies(&all)).collect();
    if varying.is_empty() {
        varying.extend(AXES.first());
    }
    let mut by_device: BTreeMap<_, Vec<&Outcome>> = BTreeMap::new();
    for outcome in results {
        by_device.entry(outcome.case.offloads).or_default().push(outcome);
    }
    let mut panels = Vec::new();
    for (at, axis) in varying.iter().enumerate() {
        let mut others = varying.clone();
        others.remove(at);
        for (offloads, outcomes) in &by_device {
            let (title, value): (_, fn(&Outcome) -> f64) = match axis.name {
                "workers" => ("Gbit/s", |o| o.gbit_per_s),
                _ => ("mean of uMCP and dMCP, ns", |o| (o.umcp.median + o.dmcp.median) / 2.0),
            };
            let title = format!("{title}, offloads {}", offloads.name());
            let series = lines(outcomes, axis, &others, value);
            let content = Content::Lines { along: axis.name, scale: axis.scale, series };
            panels.push(Panel { title, content });
        }
    }
    panels
}

/// Points along `axis`; those that differ in anything else are of another line.
fn lines(
    outcomes: &[&Outcome],
    axis: &Axis,
    others: &[&Axis],
    value: fn(&Outcome) -> f64,
) -> Vec<(String, Vec<(f64, f64)>)> {
    let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for outcome in outcomes {
        let case = &outcome.case;
        let mut name = format!("checksum {}", case.checksum.name());
        for other in others {
            name += &format!(", {} {}", (other.of)(case), other.name);
        }
        let point = ((axis.of)(case), value(outcome));
        match lines.iter_mut().find(|(known, _)| *known == name) {
            Some((_, points)) => points.push(point),
            None => lines.push((name, vec![point])),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::super::rounds::Spread;
    use super::super::Switch;
    use super::*;

    #[test]
    fn a_line_for_each_combination_of_what_else_varies() {
        let mut results = Vec::new();
        for (connections, subflows) in [(1, 1), (1, 8), (100, 1), (100, 8)] {
            let (offloads, checksum, workers) = (Switch::Off, Switch::On, 1);
            let case = Case { offloads, workers, connections, subflows, checksum };
            let spread = Spread { min: 1.0, median: f64::from(subflows), max: 9.0 };
            let (umcp, dmcp) = (spread, spread);
            let (umcp_packets, dmcp_packets, gbit_per_s) = Default::default();
            results.push(Outcome { case, umcp, dmcp, umcp_packets, dmcp_packets, gbit_per_s });
        }
        let panels = panels(&results);
        let [over_subflows, over_connections] = panels.as_slice() else { panic!("{panels:?}") };
        let series = |panel: &Panel| match &panel.content {
            Content::Lines { series, .. } => series.clone(),
            Content::Bars(_) => vec![],
        };
        let points = vec![(1.0, 1.0), (8.0, 8.0)];
        let name = |what: &str| format!("checksum on, {what}");
        assert_eq!(
            series(over_subflows),
            [(name("1 connections"), points.clone()), (name("100 connections"), points)]
        );
        assert_eq!(series(over_connections)[0].0, name("1 subflows"));
    }
}
