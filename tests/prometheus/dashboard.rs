//! What the dashboard and the alert rules ask for.

use serde_json::Value;

/// The dashboard for Grafana.
pub const DASHBOARD: &str = include_str!("../../dist/magent.dashboard.json");

/// Every expression of the dashboard.
pub fn expressions() -> Vec<String> {
    let all: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = all["panels"].as_array().expect("panels");
    let targets = panels.iter().filter_map(|p| p["targets"].as_array());
    let expressions = targets
        .flatten()
        .map(|t| t["expr"].as_str().expect("an expression"));
    expressions.map(str::to_string).collect()
}
