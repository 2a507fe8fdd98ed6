//! The picture of a run: one panel a figure over the same minutes, with a line for each restart.

use std::error::Error;
use std::path::Path;

use kymo_benches::server::mib;
use plotters::prelude::*;

use crate::process::End;
use crate::samples::{Sample, Samples};

type Figure = (&'static str, fn(&Sample) -> f64);

const FIGURES: [Figure; 5] = [
    ("resident memory, MiB", |it| mib(it.resident)),
    ("files", |it| it.files as f64),
    ("stored, MiB", |it| mib(it.stored)),
    ("rows acknowledged a second", |it| it.rows as f64),
    ("slowest query of a second, ms", |it| it.slowest_ms),
];

const WIDTH: u32 = 960;
const PANEL: u32 = 170;

/// Draws a run into an SVG file.
pub fn draw(path: &Path, samples: &Samples) -> Result<(), Box<dyn Error>> {
    let size = (WIDTH, PANEL * FIGURES.len() as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, figure) in root.split_evenly((FIGURES.len(), 1)).iter().zip(FIGURES) {
        panel(area, samples, figure)?;
    }
    root.present()?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn panel(area: &Area<'_>, samples: &Samples, (name, of): Figure) -> Result<(), Box<dyn Error>> {
    let minutes = samples.seconds.last().map_or(1.0, |it| it.at / 60.0);
    let top = samples.seconds.iter().map(of).fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .caption(name, ("sans-serif", 14))
        .x_label_area_size(22)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..minutes, 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .y_labels(5)
        .x_labels(12)
        .x_label_formatter(&|minute| format!("{minute:.0} min"))
        .y_label_formatter(&|value| format!("{value:.0}"))
        .draw()?;
    for (at, end) in &samples.restarts {
        let color = if *end == End::Killed { RED.mix(0.6) } else { BLACK.mix(0.35) };
        let line = [(at / 60.0, 0.0), (at / 60.0, top)];
        chart.draw_series(LineSeries::new(line, color))?;
    }
    let line = samples.seconds.iter().map(|it| (it.at / 60.0, of(it)));
    chart.draw_series(LineSeries::new(line, BLUE.stroke_width(1)))?;
    Ok(())
}
