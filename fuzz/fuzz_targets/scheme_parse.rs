//! A scheme that parses prints a text that parses to the same scheme; an error can be shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scrimp_codec::Scheme;

fuzz_target!(|text: &str| match text.parse::<Scheme>() {
    Ok(scheme) => {
        let printed = scheme.to_string();
        assert_eq!(printed.parse::<Scheme>().as_ref(), Ok(&scheme), "{printed}");
        let _ = scheme.size(&[3, 4, 5]);
        let _ = scheme.size(&[0, 1, usize::MAX, usize::MAX]);
    }
    Err(error) => assert!(!error.to_string().is_empty()),
});
