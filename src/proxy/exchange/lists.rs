//! Lists of models, merged over several servers, with the aliases of this machine.

use http::header::{HeaderValue, VIA};
use http::{HeaderMap, Method};
use serde_json::json;

use super::{End, Exchange};
use crate::http::fields::SERVER_FIELD;
use crate::manager::Inventories;
use crate::ollama::endpoints::VERSION;
use crate::ollama::inventory::merged_with;

impl Exchange<'_> {
    /// Answers from what is known of several servers; a single one answers for itself. Ollama reads
    /// neither query nor body here (`ListHandler`, `PsHandler`, `ListMiddleware`).
    pub(super) fn answer_from_lists(&self) -> Option<End> {
        let list = self.endpoint.list;
        let aliases = &self.context.settings.aliases;
        let has_aliases = list.is_some() && !aliases.is_empty();
        let is_read = matches!(self.head.method, Method::GET | Method::HEAD);
        if !is_read
            || (list.is_none() && self.path() != VERSION)
            || self.head.fields.contains_key(SERVER_FIELD)
            || !self.is_client()
            || !(self.context.presence.has_choice() || has_aliases)
        {
            return None;
        }
        let inventories = self.context.mailbox.inventories();
        let Inventories { backends, sleeping, .. } = inventories;
        let is_merged = match list {
            // What can be woken is listed, unless the only one that is up didn't tell what it has.
            Some(_) if sleeping > 0 => backends == 0 || inventories.known.len() > sleeping,
            _ => (backends >= 2 || has_aliases) && !inventories.known.is_empty(),
        };
        if !is_merged {
            return None;
        }
        let (names, known): (Vec<String>, Vec<_>) = inventories.known.into_iter().unzip();
        let body = match list {
            Some(list) => merged_with(list, &known, aliases),
            None => json!({ "version": inventories.version.to_string() }).to_string(),
        };
        let mut fields = HeaderMap::new();
        fields.append(VIA, self.context.via.clone());
        if let Ok(names) = HeaderValue::from_str(&names.join(", ")) {
            fields.insert(SERVER_FIELD, names);
        }
        Some(self.answer(200, fields, &body))
    }
}
