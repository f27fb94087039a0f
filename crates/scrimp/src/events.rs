//! Event files: scalars by step, as TensorBoard reads them.
//!
//! A file is a row of records (`TFRecord`): the number of data bytes as `u64`, its checksum, the data, their checksum. A
//! checksum is CRC-32C, rotated right by 15 bits, plus `0xa282ead8`, as `u32`. All of it is little-endian. The data are an
//! `Event` in the wire format of Protocol Buffers, of which these fields are written:
//!
//! | message | field | number | type |
//! |---|---|---|---|
//! | `Event` | `wall_time`, seconds since 1970 | 1 | double |
//! | | `step`, left out where it is 0 | 2 | int64 |
//! | | `file_version`, in the first record alone | 3 | string |
//! | | `summary`, in all others | 5 | `Summary` |
//! | `Summary` | `value`, once for each scalar | 1 | `Value` |
//! | `Value` | `tag` | 1 | string |
//! | | `simple_value` | 2 | float |
//!
//! # Source
//! `event.proto`, `summary.proto` and `record_writer.py` of TensorBoard 2.21.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use scrimp_files::FileError;
use scrimp_train::telemetry::TensorReport;

/// What the first record of every file says.
const VERSION: &str = "brain.Event:2";

/// Bytes of a record before its data, and after.
const HEAD: usize = 12;
const FOOT: usize = 4;

/// An event file that grows.
#[derive(Debug)]
pub(crate) struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// The file in a folder, with what an earlier part of a run wrote before this step.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub(crate) fn open(folder: &Path, step: u64, wall_time: f64) -> Result<Self, FileError> {
        // TensorBoard knows such files by this part of their name.
        let path = folder.join("events.out.tfevents.scrimp");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(FileError::io("read", &path, e)),
        };
        let kept = before(&bytes, step);
        if kept < bytes.len() || kept == 0 {
            let first = if kept == 0 { version(wall_time) } else { Vec::new() };
            crate::run::write(&path, &[&bytes[..kept], &first].concat())?;
        }
        let file = OpenOptions::new().append(true).open(&path);
        let file = file.map_err(|e| FileError::io("write", &path, e))?;
        Ok(Self { file, path })
    }

    /// Appends scalars of a step. They are with the system when this returns, so that a run that is killed loses none.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(crate) fn write(
        &mut self,
        wall_time: f64,
        step: u64,
        scalars: &[(String, f64)],
    ) -> Result<(), FileError> {
        let record = record(&event(wall_time, step, scalars));
        self.file.write_all(&record).map_err(|e| FileError::io("write", &self.path, e))
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// The scalars of a tensor in a step that was looked at, such as `dy.sqnr_db/conv1`: pages of TensorBoard go by what
/// stands before the first slash.
pub(crate) fn of_tensor(tensor: &TensorReport) -> Vec<(String, f64)> {
    let TensorReport { layer, role, sqnr_db, clipped, zeroed, min, max, amax, .. } = tensor;
    let [min, max, amax] = [min, max, amax].map(|value| value.map(f64::from));
    let all = [
        ("sqnr_db", *sqnr_db),
        ("clipped", *clipped),
        ("zeroed", Some(*zeroed)),
        ("min", min),
        ("max", max),
        ("amax", amax),
    ];
    let scalar =
        |(name, value): (&str, Option<f64>)| Some((format!("{role}.{name}/{layer}"), value?));
    all.into_iter().filter_map(scalar).collect()
}

/// How many bytes of a file are whole records of steps before this one. The rest may be the half of a record, or steps
/// that a run takes again because it was killed before it saved them.
fn before(bytes: &[u8], step: u64) -> usize {
    let mut kept = 0;
    while let Some(data) = first_data(&bytes[kept..])
        && step_of(data).is_some_and(|of| of < step || kept == 0)
    {
        kept += HEAD + data.len() + FOOT;
    }
    kept
}

/// The data of the record at the begin of these bytes; `None` if there is no whole one, or its checksums are wrong.
fn first_data(bytes: &[u8]) -> Option<&[u8]> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let (len, checksum) = head.split_at(8);
    if masked_crc(len).to_le_bytes() != checksum {
        return None;
    }
    let len = usize::try_from(u64::from_le_bytes(len.try_into().ok()?)).ok()?;
    let (data, rest) = rest.split_at_checked(len)?;
    (rest.get(..FOOT)? == masked_crc(data).to_le_bytes()).then_some(data)
}

/// The step of an event as it is written here: after `wall_time`, or left out.
fn step_of(event: &[u8]) -> Option<u64> {
    let (time, mut rest) = event.split_at_checked(9)?;
    if time[0] != key(1, Wire::Fixed64) {
        return None;
    }
    if rest.first() != Some(&key(2, Wire::Varint)) {
        return Some(0);
    }
    let mut step = 0;
    for shift in (0..u64::BITS).step_by(7) {
        rest = &rest[1..];
        let byte = *rest.first()?;
        step |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(step);
        }
    }
    None
}

/// How the value of a field is laid out.
#[derive(Clone, Copy)]
enum Wire {
    Varint = 0,
    Fixed64 = 1,
    Bytes = 2,
    Fixed32 = 5,
}

/// What stands before a field with a number below 16.
const fn key(number: u8, wire: Wire) -> u8 {
    number << 3 | wire as u8
}

fn push_varint(mut value: u64, out: &mut Vec<u8>) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

fn push_bytes(number: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(key(number, Wire::Bytes));
    push_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// The record that begins a file.
fn version(wall_time: f64) -> Vec<u8> {
    let mut data = vec![key(1, Wire::Fixed64)];
    data.extend(wall_time.to_le_bytes());
    push_bytes(3, VERSION.as_bytes(), &mut data);
    record(&data)
}

#[expect(clippy::cast_possible_truncation, reason = "event files hold f32")]
fn event(wall_time: f64, step: u64, scalars: &[(String, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, scalar) in scalars {
        let mut value = Vec::new();
        push_bytes(1, tag.as_bytes(), &mut value);
        value.push(key(2, Wire::Fixed32));
        value.extend((*scalar as f32).to_le_bytes());
        push_bytes(1, &value, &mut summary);
    }
    let mut data = vec![key(1, Wire::Fixed64)];
    data.extend(wall_time.to_le_bytes());
    if step > 0 {
        data.push(key(2, Wire::Varint));
        push_varint(step, &mut data);
    }
    push_bytes(5, &summary, &mut data);
    data
}

fn record(data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u64).to_le_bytes();
    let [head, foot] = [&len[..], data].map(|bytes| masked_crc(bytes).to_le_bytes());
    [&len, &head[..], data, &foot].concat()
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: an event has some hundred bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let by_bit = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
    let by_byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), by_bit);
    !bytes.iter().fold(!0, by_byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The records of TensorBoard's own writer, and ours.
    fn golden() -> Vec<(Vec<u8>, Vec<u8>)> {
        let hex = |text: &str| -> Vec<u8> {
            let digits = (0..text.len()).step_by(2).map(|i| &text[i..i + 2]);
            digits.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
        };
        let text = include_str!("../tests/golden/events.csv");
        let rows = text.lines().filter(|line| !line.starts_with('#')).skip(1);
        let row = |line: &str| {
            let [time, step, tags, values, bytes] =
                <[&str; 5]>::try_from(line.split(',').collect::<Vec<_>>()).unwrap();
            let time = f64::from_bits(u64::from_str_radix(time, 16).unwrap());
            let values = values.split_whitespace();
            let values = values.map(|v| f32::from_bits(u32::from_str_radix(v, 16).unwrap()).into());
            let scalars: Vec<(String, f64)> =
                tags.split_whitespace().map(str::to_owned).zip(values).collect();
            let ours = match scalars.len() {
                0 => version(time),
                _ => record(&event(time, step.parse().unwrap(), &scalars)),
            };
            (ours, hex(bytes))
        };
        rows.map(row).collect()
    }

    #[test]
    fn records_are_those_of_tensorboard() {
        let records = golden();
        assert!(records.len() > 5);
        for (ours, theirs) in records {
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn the_checksum_is_that_of_its_specification() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b""), 0);
    }

    fn scalar(value: f64) -> Vec<(String, f64)> {
        vec![("train/loss".into(), value)]
    }

    #[test]
    fn a_run_that_was_killed_goes_on_to_the_same_bytes() {
        let [whole, cut] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let write = |folder: &Path, steps: std::ops::Range<u16>| {
            let mut file = EventFile::open(folder, steps.start.into(), 9.0).unwrap();
            for step in steps {
                file.write(f64::from(step), step.into(), &scalar(step.into())).unwrap();
            }
            std::fs::read(folder.join("events.out.tfevents.scrimp")).unwrap()
        };
        let expected = write(whole.path(), 0..300);
        let written = write(cut.path(), 0..200);
        // It had saved before step 150, and was killed in the middle of a record.
        let path = cut.path().join("events.out.tfevents.scrimp");
        std::fs::write(&path, &written[..written.len() - 7]).unwrap();
        assert!(write(cut.path(), 150..300) == expected);
        // A run that begins anew leaves nothing of another.
        assert!(write(cut.path(), 0..300) == expected);
    }

    #[test]
    fn damaged_bytes_are_cut_off() {
        let records = [version(1.0), record(&event(2.0, 0, &scalar(0.5)))];
        let good = records.concat();
        assert_eq!(before(&good, 1), good.len());
        assert_eq!(before(&good, 0), records[0].len());
        for len in 0..good.len() {
            let kept = before(&good[..len], 1);
            assert_eq!(kept, if len < records[0].len() { 0 } else { records[0].len() });
        }
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 0x40;
            assert!(before(&bad, 9) < good.len(), "byte {place}");
        }
        // A length that would need all memory, with the right checksum.
        let len = u64::MAX.to_le_bytes();
        let head = [&len[..], &masked_crc(&len).to_le_bytes()].concat();
        assert_eq!(before(&[&head[..], &[0; 64]].concat(), 9), 0);
        for data in [&[][..], &[0; 40], &[9; 9], &[[9; 9].as_slice(), &[0x10]].concat()] {
            before(&record(data), 9);
        }
        let endless = [&[9; 9][..], &[0x10], &[0xff; 20]].concat();
        assert_eq!(before(&record(&endless), 9), 0);
    }
}
