//! The records that both CIFAR data sets are made of.

use std::io::{self, Read};
use std::path::PathBuf;

use thiserror::Error;

use super::files::Found;
use super::{DataError, DataRequest, DataSet, Images, Names, Splits, split};

/// Rows and columns of an image.
pub(super) const SIDE: usize = 32;
/// Red, green and blue.
pub(super) const CHANNELS: usize = 3;
const IMAGE_LEN: usize = CHANNELS * SIDE * SIDE;

/// What a record is: a byte for each label, then the red, the green and the blue plane.
#[derive(Debug)]
pub(super) struct Layout {
    /// Classes of each label, in the order of the bytes.
    pub labels: &'static [usize],
    /// Which of the labels is taken.
    pub taken: usize,
    /// Most records in a file, which is what the largest official file holds.
    pub most_records: usize,
}

impl Layout {
    pub const fn record_bytes(&self) -> usize {
        self.labels.len() + IMAGE_LEN
    }

    pub const fn classes(&self) -> usize {
        self.labels[self.taken]
    }

    /// Reads records until the source ends and adds them to `images`; memory grows with the bytes
    /// that arrive.
    ///
    /// # Errors
    /// [`CifarError`]; `images` then holds the records before the broken one. No more than
    /// [`Layout::most_records`] are read, so that a packed source cannot unpack without end.
    pub fn read(&self, mut source: impl Read, images: &mut Images) -> Result<(), CifarError> {
        let record_bytes = self.record_bytes();
        let mut record = Vec::with_capacity(record_bytes);
        for index in 0.. {
            record.clear();
            let got = source.by_ref().take(record_bytes as u64).read_to_end(&mut record)?;
            match got {
                0 if index == 0 => return Err(CifarError::Empty { record_bytes }),
                0 => break,
                _ if index == self.most_records => {
                    return Err(CifarError::TooLarge { most: self.most_records, record_bytes });
                }
                _ if got < record_bytes => {
                    return Err(CifarError::Truncated { index, got, record_bytes });
                }
                _ => {}
            }
            let (labels, pixels) = record.split_at(self.labels.len());
            // A label that is not taken tells a broken file too.
            for (&label, &classes) in labels.iter().zip(self.labels) {
                if usize::from(label) >= classes {
                    return Err(CifarError::Label { index, label, classes });
                }
            }
            images.labels.push(labels[self.taken]);
            images.pixels.extend_from_slice(pixels);
        }
        Ok(())
    }
}

/// Why bytes are not a file of CIFAR records.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CifarError {
    /// The source failed; for packed files this is also how broken packing shows.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// There is no record.
    #[error("empty: at least one record of {record_bytes} bytes is needed")]
    Empty {
        /// Bytes of a record.
        record_bytes: usize,
    },
    /// The last record is not whole.
    #[error("cut off: record {index} has {got} of {record_bytes} bytes")]
    Truncated {
        /// Position of the record.
        index: usize,
        /// Bytes of it.
        got: usize,
        /// Bytes that it should have.
        record_bytes: usize,
    },
    /// There are more records than in any official file.
    #[error("more than {most} records of {record_bytes} bytes, which no official file has")]
    TooLarge {
        /// Records of the largest official file.
        most: usize,
        /// Bytes of a record.
        record_bytes: usize,
    },
    /// A record's label is no class.
    #[error("label {label} of record {index} is no class: valid are 0 to {}", .classes - 1)]
    Label {
        /// Position of the record.
        index: usize,
        /// Its label.
        label: u8,
        /// Number of classes.
        classes: usize,
    },
}

/// No images yet.
pub(super) fn none() -> Images {
    Images { pixels: Vec::new(), labels: Vec::new(), channels: CHANNELS, height: SIDE, width: SIDE }
}

/// A file of records and what it is for.
#[derive(Debug)]
pub(super) struct Part {
    what: &'static str,
    pub name: &'static str,
}

pub(super) const fn part(what: &'static str, name: &'static str) -> Part {
    Part { what, name }
}

/// The files of a data set, where they are, and by what their images are normalized.
#[derive(Debug)]
pub(super) struct Files<'a> {
    pub set: &'a dyn DataSet,
    pub layout: &'a Layout,
    pub folders: &'a [PathBuf],
    pub origin: &'static str,
    /// Of classes, where they are known.
    pub names: &'static [&'static str],
    pub mean: [f32; CHANNELS],
    pub std: [f32; CHANNELS],
}

impl Files<'_> {
    pub fn load(
        &self,
        train: &[Part],
        test: &Part,
        request: &DataRequest,
        note: &str,
    ) -> Result<Splits, DataError> {
        // All files are looked for before the first is read.
        let train = train.iter().map(|part| self.search(part)).collect::<Result<Vec<_>, _>>()?;
        let test = [self.search(test)?];
        let (train, validation) = split(self.read_all(&train)?, request)?;
        Ok(Splits {
            train,
            validation,
            test: self.read_all(&test)?,
            classes: self.layout.classes(),
            class_names: self.names.iter().map(|&name| name.to_owned()).collect(),
            mean: self.mean.to_vec(),
            std: self.std.to_vec(),
            note: note.to_owned(),
        })
    }

    fn search(&self, part: &Part) -> Result<Found, DataError> {
        Found::search(self.folders, &[part.name]).ok_or_else(|| DataError::FileNotFound {
            set: self.set.name(),
            part: part.what,
            folders: self.folders.to_vec(),
            names: Names(vec![part.name]),
            origin: self.origin,
        })
    }

    fn read_all(&self, files: &[Found]) -> Result<Images, DataError> {
        let mut images = none();
        for file in files {
            let source = file.open().map_err(|error| DataError::file(&file.path, error))?;
            self.layout
                .read(source, &mut images)
                .map_err(|error| DataError::file(&file.path, error))?;
        }
        Ok(images)
    }
}

#[cfg(test)]
mod tests {
    use scrimp_codec::philox::Stream;

    use super::*;

    /// One label, and two of which the second is taken.
    static LAYOUTS: [Layout; 2] = [
        Layout { labels: &[10], taken: 0, most_records: 30 },
        Layout { labels: &[4, 10], taken: 1, most_records: 30 },
    ];

    fn parse(layout: &Layout, bytes: &[u8]) -> Result<Images, CifarError> {
        let mut images = none();
        layout.read(bytes, &mut images)?;
        Ok(images)
    }

    fn byte(number: usize) -> u8 {
        u8::try_from(number).unwrap()
    }

    /// Records whose planes hold the record's number, plus 100 for green and 200 for blue.
    fn records(layout: &Layout, first: u8, count: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in first..first + count {
            bytes.extend(layout.labels.iter().map(|&classes| number % byte(classes)));
            for plane in 0..3 {
                bytes.extend([number + 100 * plane; SIDE * SIDE]);
            }
        }
        bytes
    }

    #[test]
    fn records_become_labels_and_planes() {
        for layout in &LAYOUTS {
            let images = parse(layout, &records(layout, 5, 2)).unwrap();
            assert_eq!(images.labels, [5, 6]);
            assert_eq!(images.image(1)[..1024], [6; 1024]);
            assert_eq!(images.image(1)[1024..2048], [106; 1024]);
            assert_eq!(images.image(1)[2048..], [206; 1024]);
        }
        let coarse = Layout { labels: &[4, 10], taken: 0, most_records: 30 };
        assert_eq!(parse(&coarse, &records(&coarse, 5, 2)).unwrap().labels, [1, 2]);
    }

    #[test]
    fn broken_records_are_named() {
        for (layout, bytes) in LAYOUTS.iter().zip([3073, 3074]) {
            let message = |bytes: &[u8]| parse(layout, bytes).unwrap_err().to_string();
            assert_eq!(layout.record_bytes(), bytes);
            let empty = format!("empty: at least one record of {bytes} bytes is needed");
            assert_eq!(message(&[]), empty);
            assert_eq!(message(&[1]), format!("cut off: record 0 has 1 of {bytes} bytes"));
            let cut = &records(layout, 0, 3)[..2 * bytes + 100];
            assert_eq!(message(cut), format!("cut off: record 2 has 100 of {bytes} bytes"));
            for (place, classes) in layout.labels.iter().enumerate() {
                let mut stray = records(layout, 0, 3);
                stray[bytes + place] = byte(*classes);
                let most = classes - 1;
                let text =
                    format!("label {classes} of record 1 is no class: valid are 0 to {most}");
                assert_eq!(message(&stray), text);
            }
            let large = vec![0; bytes * 30 + 1];
            let text = format!("more than 30 records of {bytes} bytes, which no official file has");
            assert_eq!(message(&large), text);
            assert_eq!(parse(layout, &large[1..]).unwrap().len(), 30);
        }
    }

    #[test]
    fn a_source_without_end_is_left_after_the_most_records() {
        let mut images = none();
        let error = LAYOUTS[1].read(io::repeat(0), &mut images).unwrap_err();
        assert!(matches!(error, CifarError::TooLarge { .. }));
        assert_eq!(images.len(), 30);
    }

    #[test]
    fn altered_records_are_answered_and_what_is_accepted_is_consistent() {
        for layout in &LAYOUTS {
            let (whole, record_bytes) = (records(layout, 0, 3), layout.record_bytes());
            let mut accepted = 0;
            for round in 0..2_000 {
                let dice = Stream::new(8, 9).at_step(round);
                let mut bytes = whole.clone();
                let [place, value, cut, len] = dice.words(0);
                // The labels are the places that matter; every other change is one of pixels.
                let at = (place as usize % 4) * record_bytes + place as usize % 3;
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = (value >> 24) as u8 % 16;
                }
                if cut % 3 == 0 {
                    bytes.truncate(len as usize % (whole.len() + 1));
                } else if cut % 3 == 1 {
                    bytes.truncate(len as usize % 4 * record_bytes);
                }
                if let Ok(images) = parse(layout, &bytes) {
                    accepted += 1;
                    assert_eq!(images.len() * record_bytes, bytes.len());
                    assert_eq!(images.pixels.len(), images.len() * IMAGE_LEN);
                    assert!(images.labels.iter().all(|&label| label < 10));
                }
            }
            assert!(accepted > 20, "{accepted} of the altered files were accepted");
        }
    }
}
