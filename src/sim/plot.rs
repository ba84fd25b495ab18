//! An outcome as a picture: what each VM holds, and what is free, over time. SVG, written by hand:
//! a few lines and labels are not worth a drawing library.

use std::fmt::Write;

use super::outcome::{CurvePoint, Outcome};
use crate::units::Pages;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 46.0;
/// Legend entries of one picture, at most.
const LEGEND_MAX: usize = 12;
/// Distance of one picture from the next.
const PITCH: f64 = HEIGHT + TOP + 50.0;
/// Colours that people with any colour vision tell apart (Okabe and Ito).
const COLOURS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c00",
];

/// One picture for each outcome, one below the other.
pub fn svg(outcomes: &[Outcome]) -> String {
    let mut out = String::new();
    let height = PITCH * outcomes.len() as f64 + 10.0;
    let width = LEFT + WIDTH + 150.0;
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>"
    );
    for (index, outcome) in outcomes.iter().enumerate() {
        picture(&mut out, outcome, PITCH * index as f64 + TOP);
    }
    out.push_str("</svg>\n");
    out
}

fn picture(out: &mut String, outcome: &Outcome, top: f64) {
    let curves = &outcome.trace.curves;
    let end = curves
        .last()
        .map_or(1.0, |(at, _, _)| at.as_secs_f64().max(0.1));
    let held = |(_, free, vms): &CurvePoint| {
        let held = vms.iter().map(|(_, held)| *held);
        held.max().unwrap_or(*free).max(*free)
    };
    let top_pages = curves.iter().map(held).max().unwrap_or(Pages(1)).0.max(4);
    let most = top_pages as f64;
    let x = |seconds: f64| LEFT + seconds / end * WIDTH;
    let y = |pages: Pages| top + HEIGHT - pages.0 as f64 / most * HEIGHT;
    let verdict = if outcome.ok { "ok" } else { "FAILED" };
    let title = escape(&format!(
        "{}, policy {}: {verdict}",
        outcome.scenario, outcome.policy
    ));
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{title}</text>\n\
         <rect x=\"{LEFT}\" y=\"{top}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" stroke=\"#999\"/>",
        top - 12.0
    );
    for part in 0..=4_u32 {
        let pages = Pages(top_pages * u64::from(part) / 4);
        let seconds = end * f64::from(part) / 4.0;
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{} MiB</text>\n\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{seconds:.0} s</text>",
            LEFT - 6.0,
            y(pages) + 4.0,
            pages.bytes() >> 20,
            x(seconds),
            top + HEIGHT + 16.0
        );
    }
    for (index, vm) in outcome.vms.iter().enumerate() {
        let points = curves.iter().filter_map(|(at, _, vms)| {
            let (_, held) = vms.iter().find(|(guest, _)| *guest == index)?;
            Some((x(at.as_secs_f64()), y(*held)))
        });
        let colour = COLOURS[index % COLOURS.len()];
        line(out, points, &format!("stroke=\"{colour}\""));
        if index < LEGEND_MAX {
            legend(out, index, colour, &vm.name, top);
        }
    }
    let free = curves
        .iter()
        .map(|(at, free, _)| (x(at.as_secs_f64()), y(*free)));
    line(out, free, "stroke=\"#000\" stroke-dasharray=\"4 3\"");
    let last = outcome.vms.len().min(LEGEND_MAX);
    legend(out, last, "#000", "free (dashed)", top);
}

fn line(out: &mut String, points: impl Iterator<Item = (f64, f64)>, style: &str) {
    out.push_str("<polyline fill=\"none\" stroke-width=\"1.5\" ");
    out.push_str(style);
    out.push_str(" points=\"");
    for (x, y) in points {
        let _ = write!(out, "{x:.1},{y:.1} ");
    }
    out.push_str("\"/>\n");
}

fn legend(out: &mut String, index: usize, colour: &str, name: &str, top: f64) {
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" fill=\"{colour}\">{}</text>",
        LEFT + WIDTH + 10.0,
        top + 12.0 + 16.0 * index as f64,
        escape(name)
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
