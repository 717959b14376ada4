//! What reader, survey and writer promise together.

use proptest::prelude::{any, prop, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::{Just, Strategy};

use super::{Reader, Record, Survey, Writer, parse_field};
use crate::row::{LogicalType, Row, Value};

/// Loads a file into rows as its survey types them, and writes it again.
fn rewritten(file: &[u8]) -> Vec<u8> {
    let mut survey = None;
    let mut record = Record::new();
    let mut reader = Reader::open(file, "t.csv").unwrap();
    while reader.read(&mut record).unwrap() {
        survey.get_or_insert_with(|| Survey::new(reader.header().len())).observe(&record);
    }
    let types: Vec<LogicalType> = survey.map_or(Vec::new(), |survey| {
        survey.columns().iter().map(|column| column.inferred()).collect()
    });

    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out);
    let mut reader = Reader::open(file, "t.csv").unwrap();
    writer.header(reader.header().iter().map(String::as_str)).unwrap();
    while reader.read(&mut record).unwrap() {
        let typed = record.fields().zip(&types);
        let row: Row =
            typed.map(|(field, logical)| parse_field(field, *logical).unwrap()).collect();
        writer.row(&row).unwrap();
    }
    writer.finish().unwrap();
    out
}

/// Texts that are nearly of a type, or nearly break a format.
fn cell() -> impl Strategy<Value = Option<String>> {
    prop_oneof![
        Just(None),
        any::<String>().prop_map(Some),
        any::<i64>().prop_map(|number| Some(number.to_string())),
        "-?[0-9]{1,3}(\\.[0-9]{1,3})?".prop_map(Some),
        "[0-9]{4}-[01][0-9]-[0-3][0-9]([ T][012][0-9]:[0-5][0-9]:00(\\.5)?Z?)?".prop_map(Some),
        "[\u{feff}a,\"\r\n ]{0,4}".prop_map(Some),
        prop_oneof!["true", "t", "NaN", "Infinity", "infinity", "-0"].prop_map(Some),
    ]
}

proptest! {
    #[test]
    fn what_the_writer_writes_is_read_and_written_the_same(
        rows in (1usize..4).prop_flat_map(|columns| prop::collection::vec(prop::collection::vec(cell(), columns), 1..8)),
    ) {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file);
        let columns = rows[0].len();
        let names: Vec<String> = (0..columns).map(|at| format!("\u{feff}{at}")).collect();
        writer.header(names.iter().map(String::as_str)).unwrap();
        for row in &rows {
            let row: Row =
                row.iter().map(|cell| cell.clone().map_or(Value::Null, Value::Text)).collect();
            writer.row(&row).unwrap();
        }
        writer.finish().unwrap();

        let mut reader = Reader::open(file.as_slice(), "t.csv").unwrap();
        prop_assert_eq!(reader.header(), names);
        let mut record = Record::new();
        for row in &rows {
            assert!(reader.read(&mut record).unwrap());
            let cells: Vec<Option<String>> = record
                .fields()
                .map(|field| (!field.is_null()).then(|| field.text.to_owned()))
                .collect();
            prop_assert_eq!(&cells, row);
        }
        assert!(!reader.read(&mut record).unwrap());
        prop_assert_eq!(rewritten(&file), file);
    }

    #[test]
    fn no_bytes_break_the_reader(file: Vec<u8>, csv in "[a,\"\r\n]{0,40}") {
        for bytes in [file.as_slice(), csv.as_bytes()] {
            let mut record = Record::new();
            if let Ok(mut reader) = Reader::open(bytes, "t.csv") {
                while let Ok(true) = reader.read(&mut record) {
                    assert_eq!(record.fields().count(), reader.header().len());
                }
            }
        }
    }
}
