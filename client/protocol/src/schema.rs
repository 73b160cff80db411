//! Schemas of Avro from texts that may be anybody's, read by apache-avro: those of a protocol's messages, and those of files.
//!
//! The crate recurses as deep as types are nested, and panics on some names and sizes that Avro's specification forbids. So it
//! never gets the text itself, but a copy of the types that are needed. It holds only what decides how values are encoded, is of
//! bounded depth and size, and each name in it is one.

use std::collections::{HashMap, HashSet};

use apache_avro::Schema;
use serde_json::{Value, json};

/// How deep the types of a parameter may be nested. Ours need four levels; the crate's recursion takes some kilobytes of stack
/// for each.
const MAX_DEPTH: usize = 16;
/// Types, fields and symbols that a message may have.
const MAX_PARTS: usize = 1_000;
/// Larger `fixed` types are refused.
const MAX_FIXED_BYTES: u64 = 1 << 20;
/// The name of the record that a message's parameters are read as; with a namespace of its own, so that it is the same whatever
/// the protocol's is.
const PARAMETERS: &str = "bitacora.Parameters";

/// Reads the schema that a file names, for example. Documentation, defaults, aliases and logical types are left out: a
/// `timestamp-millis` is a `long`.
///
/// # Errors
/// Says what is wrong with the text: it is no JSON or no schema, or has more than 1,000 types, fields and symbols, or types that
/// are nested deeper than 16 levels.
pub fn parse_schema(text: &str) -> Result<Schema, String> {
    let declaration: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    // A schema is also the only thing that it can refer to.
    let types = json!({ "types": [&declaration] });
    Declarations::of(&types).schema(&declaration)
}

/// A protocol's declarations: its named types by full name, each with the namespace that its own references are relative to.
pub(crate) struct Declarations<'a> {
    namespace: &'a str,
    types: HashMap<String, (&'a Value, &'a str)>,
}

/// A string attribute of a JSON object.
pub(crate) fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name).and_then(Value::as_str)
}

/// An array attribute of a JSON object; no items if there is none.
pub(crate) fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn full_name(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() { name.to_owned() } else { format!("{namespace}.{name}") }
}

/// Checks that each part of a name that dots divide is a name by Avro's specification.
fn checked_name(name: &str) -> Result<&str, String> {
    let is_name = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    if name.split('.').all(is_name) { Ok(name) } else { Err(format!("'{name:.50}' is not a name")) }
}

fn is_primitive(name: &str) -> bool {
    matches!(name, "null" | "boolean" | "int" | "long" | "float" | "double" | "bytes" | "string")
}

impl<'a> Declarations<'a> {
    pub(crate) fn of(protocol: &'a Value) -> Self {
        let namespace = text(protocol, "namespace").unwrap_or_default();
        let mut declarations = Self { namespace, types: HashMap::new() };
        for declaration in list(protocol, "types") {
            declarations.collect(declaration, namespace);
        }
        declarations
    }

    /// Java prints a type where it is used first, so named types lie anywhere.
    fn collect(&mut self, declaration: &'a Value, namespace: &'a str) {
        match declaration {
            Value::Array(branches) => branches.iter().for_each(|branch| self.collect(branch, namespace)),
            Value::Object(_) => {
                let namespace = text(declaration, "namespace").unwrap_or(namespace);
                if let Some(name) = text(declaration, "name") {
                    self.types.insert(full_name(name, namespace), (declaration, namespace));
                }
                for field in list(declaration, "fields") {
                    self.collect(&field["type"], namespace);
                }
                for name in ["type", "items", "values"] {
                    self.collect(&declaration[name], namespace);
                }
            }
            _ => {}
        }
    }

    /// The parameters of a message as the fields of a record. The error says what can't be understood.
    pub(crate) fn request(&self, message: &Value) -> Result<Schema, String> {
        let parameters = list(message, "request");
        let record = json!({ "type": "record", "name": PARAMETERS, "fields": parameters });
        self.schema(&record)
    }

    /// What a message is answered with: its response, or the union of the errors that it declares and the string that every
    /// message has.
    #[cfg(test)]
    pub(crate) fn answers(&self, message: &Value) -> Result<(Schema, Schema), String> {
        let mut errors = vec![json!("string")];
        errors.extend_from_slice(list(message, "errors"));
        Ok((self.schema(&message["response"])?, self.schema(&Value::Array(errors))?))
    }

    fn schema(&self, declaration: &Value) -> Result<Schema, String> {
        let mut copy = TypeCopier { declarations: self, seen: HashSet::new(), parts: 0 };
        let declaration = copy.of(declaration, self.namespace, MAX_DEPTH)?;
        Schema::parse(&declaration).map_err(|error| error.to_string())
    }
}

/// Copies a declaration with all the types that it needs, each spelt out where it is used first.
struct TypeCopier<'a> {
    declarations: &'a Declarations<'a>,
    seen: HashSet<String>,
    parts: usize,
}

impl TypeCopier<'_> {
    fn of(&mut self, declaration: &Value, namespace: &str, depth: usize) -> Result<Value, String> {
        self.count(1)?;
        let depth = depth.checked_sub(1).ok_or(format!("types are nested deeper than {MAX_DEPTH} levels"))?;
        match declaration {
            Value::String(name) if is_primitive(name) => Ok(declaration.clone()),
            Value::String(name) => self.named(checked_name(name)?, namespace, depth),
            Value::Array(branches) if branches.is_empty() => Err("a union has no types".to_owned()),
            Value::Array(branches) => {
                let branches = branches.iter().map(|branch| self.of(branch, namespace, depth));
                branches.collect::<Result<Vec<_>, _>>().map(Value::Array)
            }
            Value::Object(_) => self.complex(declaration, namespace, depth),
            _ => Err("a type is neither a name, a list nor an object".to_owned()),
        }
    }

    fn named(&mut self, name: &str, namespace: &str, depth: usize) -> Result<Value, String> {
        let name = full_name(name, namespace);
        if self.seen.contains(&name) {
            return Ok(Value::String(name));
        }
        match self.declarations.types.get(&name) {
            Some((definition, namespace)) => self.complex(definition, namespace, depth),
            None => Err(format!("there is no type {name}")),
        }
    }

    fn complex(&mut self, declaration: &Value, namespace: &str, depth: usize) -> Result<Value, String> {
        let Some(kind) = text(declaration, "type") else {
            // `{"type": {"type": "string"}}`
            return self.of(&declaration["type"], namespace, depth);
        };
        match kind {
            "array" => {
                Ok(json!({ "type": "array", "items": self.of(&declaration["items"], namespace, depth)? }))
            }
            "map" => {
                Ok(json!({ "type": "map", "values": self.of(&declaration["values"], namespace, depth)? }))
            }
            "record" | "error" | "enum" | "fixed" => self.definition(kind, declaration, namespace, depth),
            // `{"type": "string", "avro.java.string": "String"}`
            name => self.of(&Value::String(name.to_owned()), namespace, depth),
        }
    }

    fn definition(
        &mut self,
        kind: &str,
        declaration: &Value,
        namespace: &str,
        depth: usize,
    ) -> Result<Value, String> {
        let namespace = text(declaration, "namespace").unwrap_or(namespace);
        let name = full_name(text(declaration, "name").unwrap_or_default(), namespace);
        checked_name(&name)?;
        if !self.seen.insert(name.clone()) {
            return Ok(Value::String(name));
        }
        match kind {
            "enum" => {
                let symbols = list(declaration, "symbols");
                self.count(symbols.len())?;
                for symbol in symbols {
                    checked_name(symbol.as_str().unwrap_or_default())?;
                }
                Ok(json!({ "type": "enum", "name": name, "symbols": symbols }))
            }
            "fixed" => {
                let size = declaration["size"].as_u64().filter(|size| *size <= MAX_FIXED_BYTES);
                let size = size.ok_or_else(|| format!("{name} has no size, or too large a one"))?;
                Ok(json!({ "type": "fixed", "name": name, "size": size }))
            }
            // An error is a record to whoever reads it.
            _ => {
                let mut fields = Vec::new();
                for field in list(declaration, "fields") {
                    let field_name = checked_name(text(field, "name").unwrap_or_default())?;
                    let kind = self.of(&field["type"], namespace, depth)?;
                    fields.push(json!({ "name": field_name, "type": kind }));
                }
                Ok(json!({ "type": "record", "name": name, "fields": fields }))
            }
        }
    }

    fn count(&mut self, parts: usize) -> Result<(), String> {
        self.parts += parts;
        if self.parts > MAX_PARTS {
            return Err(format!("it has more than {MAX_PARTS} types, fields and symbols"));
        }
        Ok(())
    }
}
