//! Running a piece of code (`/process/code-run`) and the charts that it shows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Code to run to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CodeRunRequest {
    /// The code.
    pub code: String,
    /// `python`, `javascript` or `typescript`.
    pub language: String,
    /// Arguments that the code sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// Added to the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envs: Option<BTreeMap<String, String>>,
    /// Seconds; zero or absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}

/// How the code ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CodeRunReply {
    /// Its status; -1 when it could not be started.
    pub exit_code: i32,
    /// Both streams as they came.
    pub result: String,
    /// What it made beside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifacts: Option<CodeRunArtifacts>,
}

/// What code made beside its output.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CodeRunArtifacts {
    /// Figures, in the order in which they were shown.
    pub charts: Vec<Chart>,
}

/// What a chart is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ChartKind {
    /// Lines through points.
    Line,
    /// Points.
    Scatter,
    /// Bars, standing or lying.
    Bar,
    /// A pie.
    Pie,
    /// Boxes and whiskers.
    BoxAndWhisker,
    /// Several charts in one figure.
    CompositeChart,
    /// Anything else.
    Unknown,
}

/// A figure of matplotlib: its picture, and what it shows as data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Chart {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: ChartKind,
    /// Its title.
    pub title: String,
    /// The whole figure as PNG in base64.
    pub png: String,
    /// Its parts; those of a composite chart are charts.
    pub elements: Vec<ChartElement>,
    /// Its axes, where it has two.
    #[serde(flatten)]
    pub axes: Option<ChartAxes>,
}

/// Two axes of a chart.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChartAxes {
    /// Label of the x axis.
    pub x_label: String,
    /// Label of the y axis.
    pub y_label: String,
    /// Ticks of the x axis.
    pub x_ticks: Vec<f64>,
    /// Their labels.
    pub x_tick_labels: Vec<String>,
    /// `linear`, `log` and so on.
    pub x_scale: String,
    /// Ticks of the y axis.
    pub y_ticks: Vec<f64>,
    /// Their labels.
    pub y_tick_labels: Vec<String>,
    /// `linear`, `log` and so on.
    pub y_scale: String,
}

/// A part of a chart. Which fields there are depends on the chart.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChartElement {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Pairs of x and y, of a line or of scattered points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub points: Option<Vec<[f64; 2]>>,
    /// Which of several series of bars it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Length of a bar, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Degrees of a piece of a pie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub angle: Option<f64>,
    /// Its radius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub radius: Option<f64>,
    /// What the pie says of its share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autopct: Option<String>,
    /// End of the lower whisker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Lower end of the box.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_quartile: Option<f64>,
    /// The line in the box.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median: Option<f64>,
    /// Upper end of the box.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub third_quartile: Option<f64>,
    /// End of the upper whisker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// What lies beyond the whiskers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outliers: Option<Vec<f64>>,
    /// Of a chart within a composite one: what it is.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<ChartKind>,
    /// Its title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Its parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(no_recursion))]
    pub elements: Option<Vec<Self>>,
    /// Its axes.
    #[serde(flatten)]
    pub axes: Option<ChartAxes>,
}
