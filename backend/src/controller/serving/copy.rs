// SPDX-License-Identifier: GPL-3.0-or-later
//! Copies of a whole controller, and what tells two of them apart: for tools that try everything
//! that may happen next. Sessions, requests and the position in the rings are copied; the guest's
//! memory is the platform's, and so are the words of a journal.

use std::hash::{Hash, Hasher};

use journal::Words;
use xen::Backend;

use super::{Attached, Serving};
use crate::controller::rings::Rings;

impl<B: Backend<Mapping: Clone>> Serving<B> {
    /// A copy. `words` hold what those of its journal hold; without them it keeps nothing.
    #[must_use]
    pub fn copy(&self, words: Option<Box<dyn Words + Send>>) -> Self {
        Self {
            place: self.place.clone(),
            journal: match words {
                Some(words) => self.journal.copy(words),
                None => crate::state::no_journal(),
            },
            records: self.records,
            recovering: self.recovering,
            recovered: super::Outcome::default(),
            core: self.core.clone(),
            rings: self.rings.as_ref().map(|rings| Rings {
                urb: rings.urb.clone(),
                conn: rings.conn.clone(),
                channel: rings.channel.clone(),
            }),
            attached: self.attached.clone(),
            quiescing: self.quiescing,
            recalls: self.recalls,
            polled: self.polled,
            completions: std::rc::Rc::default(),
            answered: self.answered.clone(),
            told: self.told,
            activity: self.activity,
            spent: self.spent,
        }
    }
}

impl<B: Backend> Serving<B> {
    /// What tells two of them apart that keep a journal, besides their [`Hash`] and its words.
    pub fn hash_kept<H: Hasher>(&self, state: &mut H) {
        (&self.journal, &self.records, self.recovering).hash(state);
    }
}

/// What was counted, and what is not ours (the platform), makes no difference.
impl<B: Backend> Hash for Serving<B> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.place.domid.0.hash(state);
        self.core.hash(state);
        if let Some(rings) = &self.rings {
            (rings.urb.indices(), rings.urb.unpublished()).hash(state);
            (rings.conn.indices(), rings.conn.unpublished()).hash(state);
        }
        self.attached.hash(state);
        (&self.answered, self.told).hash(state);
        (self.quiescing, self.recalls, self.activity).hash(state);
        self.rings.is_some().hash(state);
    }
}

impl Hash for Attached {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.client, self.saved, self.reset, self.is_full).hash(state);
    }
}
