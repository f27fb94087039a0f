//! The ledger of a file, as commands print it.

use scrimp_files::{Ledger, LedgerRow, Status};
use serde::Serialize;

use crate::ui;

/// One tensor as a line of JSON.
#[derive(Serialize)]
pub struct TensorLine<'a> {
    r#type: &'static str,
    file: &'a str,
    name: &'a str,
    shape: &'a [usize],
    values: usize,
    scheme: &'a str,
    bits_per_value: Option<f64>,
    bytes: u64,
    status: &'static str,
    reason: Option<&'a str>,
}

impl<'a> TensorLine<'a> {
    /// The line of a tensor in `file`.
    pub fn new(file: &'a str, row: &'a LedgerRow) -> Self {
        let (status, reason) = match &row.status {
            Status::Packed => ("packed", None),
            Status::Kept(reason) => ("kept", Some(reason.as_str())),
            _ => ("plain", None),
        };
        Self {
            r#type: "tensor",
            file,
            name: &row.name,
            shape: &row.shape,
            values: row.values,
            scheme: &row.scheme,
            bits_per_value: row.bits_per_value,
            bytes: row.bytes,
            status,
            reason,
        }
    }
}

/// The sums over a file as a line of JSON.
#[derive(Serialize)]
pub struct TotalLine<'a> {
    r#type: &'static str,
    file: &'a str,
    tensors: usize,
    values: u64,
    bits_per_value: Option<f64>,
    payload_bytes: u64,
    f32_bytes: u64,
    file_bytes: u64,
    times_smaller_than_f32: Option<f64>,
}

impl<'a> TotalLine<'a> {
    /// The line of `file`.
    pub fn new(file: &'a str, ledger: &Ledger) -> Self {
        let values = values(ledger);
        Self {
            r#type: "total",
            file,
            tensors: ledger.rows.len(),
            values,
            bits_per_value: bits_per_value(ledger.payload_bytes, values),
            payload_bytes: ledger.payload_bytes,
            f32_bytes: ledger.f32_bytes,
            file_bytes: ledger.file_bytes,
            times_smaller_than_f32: (ledger.payload_bytes > 0)
                .then(|| ledger.f32_bytes as f64 / ledger.payload_bytes as f64),
        }
    }
}

/// How a tensor came to its size: `packed`, `kept (1-D)`, `plain`.
pub fn status(status: &Status) -> String {
    match status {
        Status::Packed => "packed".to_owned(),
        Status::Kept(reason) => format!("kept ({reason})"),
        _ => "plain".to_owned(),
    }
}

/// Values of all tensors.
pub fn values(ledger: &Ledger) -> u64 {
    ledger.rows.iter().map(|row| row.values as u64).fold(0, u64::saturating_add)
}

/// Bits that a value takes; `None` where there is no value.
pub fn bits_per_value(bytes: u64, values: u64) -> Option<f64> {
    (values > 0).then(|| bytes as f64 * 8.0 / values as f64)
}

/// `total 272,474 values · 5.02 bits/value · 171,020 bytes · 6.37x smaller than f32`
pub fn total(ledger: &Ledger) -> String {
    let values = values(ledger);
    let total = match bits_per_value(ledger.payload_bytes, values) {
        None => "total 0 values".to_owned(),
        bits => format!(
            "total {} · {} bits/value · {} bytes",
            ui::count(values, "value"),
            ui::bits(bits),
            ui::number(ledger.payload_bytes)
        ),
    };
    if ledger.payload_bytes == ledger.f32_bytes {
        // All f32, or nothing that could be: there is nothing to compare.
        total
    } else {
        format!("{total} · {}", ui::ratio(ledger.payload_bytes, ledger.f32_bytes))
    }
}
