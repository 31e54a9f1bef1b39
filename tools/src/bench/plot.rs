//! What was measured, as an SVG.
#![forbid(unsafe_code)]

use super::rounds::Spread;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::error::Error;
use std::io;
use std::path::Path;

/// Of one panel, in pixels.
const PANEL: (u32, u32) = (560, 320);
const COLUMNS: usize = 2;
const TITLE: u32 = 40;
const COLOURS: [RGBColor; 8] = [
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0xd6, 0x27, 0x28),
    RGBColor(0xff, 0x7f, 0x0e),
    RGBColor(0x7f, 0x7f, 0x7f),
    RGBColor(0x2c, 0xa0, 0x2c),
    RGBColor(0x94, 0x67, 0xbd),
    RGBColor(0x8c, 0x56, 0x4b),
    RGBColor(0x17, 0xbe, 0xcf),
];

/// One diagram.
#[derive(Clone, Debug)]
pub struct Panel {
    /// What it shows, with its unit.
    pub title: String,
    /// How.
    pub content: Content,
}

/// What a diagram is made of.
#[derive(Clone, Debug)]
pub enum Content {
    /// A bar for each name: the median, and a line from least to greatest.
    Bars(Vec<(String, Spread)>),
    /// A line for each name, through these points.
    Lines {
        /// What runs to the right.
        along: &'static str,
        /// How.
        scale: Scale,
        /// Name and points.
        series: Vec<(String, Vec<(f64, f64)>)>,
    },
}

/// How an axis runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scale {
    /// Evenly.
    Linear,
    /// Evenly, and there is nothing between the whole numbers.
    Whole,
    /// Powers of ten at equal distances; values above zero only.
    Logarithmic,
}

/// Writes the diagrams, two in a row.
pub fn write(path: &Path, title: &str, panels: &[Panel]) -> io::Result<()> {
    let fail = |error: Box<dyn Error>| io::Error::other(format!("{}: {error}", path.display()));
    draw(path, title, panels).map_err(fail)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw(path: &Path, title: &str, panels: &[Panel]) -> Result<(), Box<dyn Error>> {
    let columns = panels.len().clamp(1, COLUMNS);
    let rows = panels.len().div_ceil(columns).max(1);
    let size = (PANEL.0 * columns as u32, PANEL.1 * rows as u32 + TITLE);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    let below = root.titled(title, ("sans-serif", 20))?;
    for (panel, area) in panels.iter().zip(below.split_evenly((rows, columns))) {
        match &panel.content {
            Content::Bars(all) => bars(&area, &panel.title, all)?,
            Content::Lines { along, scale, series } => {
                lines(&area, &panel.title, along, *scale, series)?;
            }
        }
    }
    root.present()?;
    Ok(())
}

fn bars(area: &Area<'_>, title: &str, all: &[(String, Spread)]) -> Result<(), Box<dyn Error>> {
    let top = above(all.iter().map(|(_, spread)| spread.max));
    let last = (all.len() as u32).saturating_sub(1);
    let name = |segment: &SegmentValue<u32>| match segment {
        SegmentValue::CenterOf(i) => {
            all.get(*i as usize).map(|(name, _)| name.clone()).unwrap_or_default()
        }
        _ => String::new(),
    };
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(55)
        .build_cartesian_2d((0..last).into_segmented(), 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(all.len() + 1)
        .y_label_formatter(&|y| round(*y))
        .x_label_formatter(&name)
        .draw()?;
    let label = TextStyle::from(("sans-serif", 12)).pos(Pos::new(HPos::Center, VPos::Bottom));
    for (i, (_, spread)) in (0..).zip(all) {
        let colour = COLOURS[i as usize % COLOURS.len()];
        let (from, to) = (SegmentValue::Exact(i), SegmentValue::Exact(i + 1));
        let mut bar = Rectangle::new([(from, 0.0), (to, spread.median)], colour.filled());
        bar.set_margin(0, 0, 20, 20);
        let middle = || SegmentValue::CenterOf(i);
        let ends = [(middle(), spread.min), (middle(), spread.max)];
        let value = round(spread.median);
        chart.draw_series([bar])?;
        chart.draw_series([PathElement::new(ends, BLACK)])?;
        chart.draw_series([Text::new(value, (middle(), spread.max), label.clone())])?;
    }
    Ok(())
}

fn lines(
    area: &Area<'_>,
    title: &str,
    along: &str,
    scale: Scale,
    series: &[(String, Vec<(f64, f64)>)],
) -> Result<(), Box<dyn Error>> {
    let place = |x: f64| match scale {
        Scale::Linear | Scale::Whole => x,
        Scale::Logarithmic => x.log10(),
    };
    let points = || series.iter().flat_map(|(_, points)| points);
    let top = above(points().map(|(_, y)| *y));
    let right = points().map(|(x, _)| place(*x)).fold(f64::EPSILON, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15))
        .margin(10)
        .x_label_area_size(35)
        .y_label_area_size(55)
        .build_cartesian_2d(0.0..right * 1.02, 0.0..top)?;
    let show = |x: &f64| match scale {
        Scale::Linear => format!("{x}"),
        Scale::Whole if x.fract() == 0.0 => format!("{x}"),
        Scale::Whole => String::new(),
        Scale::Logarithmic => format!("{:.0}", 10f64.powf(*x)),
    };
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc(along)
        .x_labels(9)
        .x_label_formatter(&show)
        .y_label_formatter(&|y| round(*y))
        .draw()?;
    for (i, (name, points)) in series.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let points: Vec<_> = points.iter().map(|(x, y)| (place(*x), *y)).collect();
        let line = chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?;
        line.label(name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 15, y)], colour.stroke_width(2)));
        chart.draw_series(points.into_iter().map(|at| Circle::new(at, 2, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    Ok(())
}

/// The end of an axis on which all these values find room, a label above them too.
fn above(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(f64::EPSILON, f64::max) * 1.15
}

/// With as many digits as are worth showing.
fn round(value: f64) -> String {
    match value {
        value if value == 0.0 || value >= 100.0 => format!("{value:.0}"),
        value if value < 10.0 => format!("{value:.2}"),
        _ => format!("{value:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_and_title_is_in_the_picture() {
        let path = std::env::temp_dir().join(format!("plait-plot-{}.svg", std::process::id()));
        let spread = Spread { min: 9.0, median: 10.5, max: 12.0 };
        let bars = ["plait", "a <b> & c", "none"].map(|name| (name.to_owned(), spread));
        let line = |name: &str, y| (name.to_owned(), vec![(1.0, y), (100.0, 2.0 * y)]);
        let series = vec![line("one", 5.0), line("two", 7.0)];
        let (along, scale) = ("connections", Scale::Logarithmic);
        let content = [Content::Bars(bars.into()), Content::Lines { along, scale, series }];
        let panels = content.map(|content| Panel { title: "of a panel".into(), content });
        write(&path, "of all", &panels).expect("a file");
        let text = std::fs::read_to_string(&path).expect("the file");
        std::fs::remove_file(&path).expect("the file");
        let document = roxmltree::Document::parse(&text).expect("XML");
        let words: Vec<&str> = document
            .descendants()
            .filter(|node| node.tag_name().name() == "text")
            .filter_map(|node| node.text().map(str::trim))
            .collect();
        for word in
            ["of all", "of a panel", "plait", "a <b> & c", "none", "10.5", "one", "two", "100"]
        {
            assert!(words.contains(&word), "no {word:?} in {words:?}");
        }
    }

    #[test]
    fn nothing_to_draw_is_an_empty_picture() {
        let path = std::env::temp_dir().join(format!("plait-empty-{}.svg", std::process::id()));
        let empty = Panel { title: "none".into(), content: Content::Bars(vec![]) };
        write(&path, "of all", &[empty]).expect("a file");
        std::fs::remove_file(&path).expect("the file");
    }
}
