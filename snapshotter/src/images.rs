//! Decides for an image as a whole whether its layers are lazy.
//!
//! containerd prepares the layers one after another, lowest first. The first one starts all of them, so the later ones
//! find theirs ready. As soon as one layer turns out not to be mountable, none of those still to come is: containerd
//! fetches all layers above the first ordinary one anyway.
//!
//! A manifest may name any layer, and what others may read can be here already. So an image gets only layers that its own
//! registry lets this node read in its own repository. A snapshot that was committed is not decided again: it needs nobody.

use std::{
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use darter_peer::Digest;
use futures_util::{StreamExt, stream};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    engine::{Engine, NotAllowed},
    image::{Document, ImageLayer, ImageName, LayerRequest, ManifestName},
    lazy::{Hold, LayerRef, Layers},
};

/// Most images that are remembered.
const MAX_IMAGES: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// An image that nobody asked for so long is decided anew.
const IDLE: Duration = Duration::from_secs(300);
/// Most layers that are waited for at a time.
const LAYERS_AT_ONCE: usize = 64;

/// The images that were asked for lately.
pub(crate) struct Images {
    engine: Arc<dyn Engine>,
    layers: Arc<Layers>,
    /// How long a request waits for its layer.
    patience: Duration,
    known: Mutex<LruCache<ImageName, Arc<Image>>>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// A layer that can be mounted.
#[derive(Debug, Clone)]
pub(crate) struct ReadyLayer {
    pub(crate) reference: LayerRef,
    /// The chainID of the layers below; `None` for the lowest.
    pub(crate) below: Option<Digest>,
    /// Length of the raw tar in bytes.
    pub(crate) raw_len: u64,
    /// Whether it lacks entries for directories that it puts files into.
    pub(crate) implies: bool,
    /// Keeps the layer until a snapshot does.
    pub(crate) _hold: Hold,
}

struct Image {
    name: ImageName,
    progress: watch::Sender<Progress>,
    used: Mutex<Instant>,
}

#[derive(Default)]
struct Progress {
    /// The layers, each with what is known once it is ready; `None` until the manifest and the config are here.
    layers: Option<Vec<(ImageLayer, Option<Ready>)>>,
    /// Why the image is not lazy.
    refused: Option<Arc<str>>,
}

/// What is known of a layer that can be mounted.
#[derive(Clone)]
struct Ready {
    hold: Hold,
    /// Whether it lacks entries for directories that it puts files into.
    implies: bool,
}

impl Images {
    pub(crate) fn new(engine: Arc<dyn Engine>, layers: Arc<Layers>, patience: Duration) -> Self {
        let known = Mutex::new(LruCache::new(MAX_IMAGES));
        Self {
            engine,
            layers,
            patience,
            known,
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }
    }

    /// Waits until the layer can be mounted, or says why it is not lazy.
    pub(crate) async fn decide(self: &Arc<Self>, request: &LayerRequest) -> Result<ReadyLayer, Arc<str>> {
        let image = self.image(&request.image);
        let mut progress = image.progress.subscribe();
        let decided = progress.wait_for(|progress| progress.decision(request).is_some());
        let decision = match timeout(self.patience, decided).await {
            Ok(Ok(progress)) => progress.decision(request),
            Ok(Err(_)) => None,
            Err(_) => {
                image.refuse(&format!("its layers were not ready after {:?}", self.patience));
                None
            }
        };
        let ready = decision.unwrap_or_else(|| Err(image.refusal()))?;
        if self.layers.hold(&ready.reference.diff_id).is_none() {
            return Err("the layer's content was wrong".into());
        }
        Ok(ready)
    }

    /// Lets go of the layers of images that nobody asked for lately.
    pub(crate) fn forget_idle(&self) {
        let mut known = self.known.lock();
        let idle: Vec<ImageName> =
            known.iter().filter(|(_, image)| image.is_idle()).map(|(name, _)| name.clone()).collect();
        for name in idle {
            known.pop(&name);
        }
    }

    /// A snapshot of this layer was removed: lets go of the images that have it, unless they are still being decided.
    pub(crate) fn forget(&self, diff_id: &Digest) {
        let mut known = self.known.lock();
        let over = known.iter().filter(|(_, image)| image.progress.borrow().is_ready_with(diff_id));
        let over: Vec<ImageName> = over.map(|(name, _)| name.clone()).collect();
        for name in over {
            known.pop(&name);
        }
    }

    /// Ends what is still being decided.
    pub(crate) async fn stop(&self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn image(self: &Arc<Self>, name: &ImageName) -> Arc<Image> {
        let mut known = self.known.lock();
        if let Some(image) = known.get(name).filter(|image| !image.is_idle()) {
            *image.used.lock() = Instant::now();
            return image.clone();
        }
        let image = Arc::new(Image::new(name.clone()));
        known.put(name.clone(), image.clone());
        let (images, deciding) = (self.clone(), image.clone());
        self.tasks.spawn(async move {
            let refused = deciding.refused();
            tokio::select! {
                () = images.stopping.cancelled() => deciding.refuse("the snapshotter is shutting down"),
                () = refused => {}
                result = images.make_ready(&deciding) => {
                    if let Err(reason) = result {
                        deciding.refuse(&reason);
                    }
                }
            }
        });
        image
    }

    async fn make_ready(&self, image: &Image) -> Result<(), String> {
        let layers = self.layers_of(&image.name).await?;
        image.progress.send_modify(|progress| {
            progress.layers = Some(layers.iter().map(|layer| (layer.clone(), None)).collect());
        });
        let count = layers.len();
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let top = layers.last().map(|layer| layer.chain_id.clone());
        let make_ready = |(at, layer)| async move { (at, self.make_layer_ready(&image.name, layer).await) };
        let ready =
            stream::iter(layers.into_iter().enumerate()).map(make_ready).buffer_unordered(LAYERS_AT_ONCE);
        let mut ready = std::pin::pin!(ready);
        while let Some((at, layer)) = ready.next().await {
            let layer = layer?;
            image.progress.send_modify(|progress| {
                if let Some((_, slot)) = progress.layers.as_mut().and_then(|layers| layers.get_mut(at)) {
                    *slot = Some(layer);
                }
            });
        }
        info!(image = %image.name, layers = count, "the image is lazy");
        if let Some(top) = top {
            self.layers.expect_start(&top, &diff_ids);
        }
        Ok(())
    }

    async fn layers_of(&self, image: &ImageName) -> Result<Vec<ImageLayer>, String> {
        let fetched = match &image.manifest {
            ManifestName::Digest(digest) => self.engine.manifest(&image.repository, digest).await,
            ManifestName::Tag(tag) => self.engine.tagged(&image.repository, tag).await,
        };
        let mut document = Document::parse(&fetched.map_err(|err| format!("its manifest: {err}"))?)?;
        if let Document::Index(digest) = document {
            let fetched = self.engine.manifest(&image.repository, &digest).await;
            document = Document::parse(&fetched.map_err(|err| format!("its manifest: {err}"))?)?;
        }
        let Document::Manifest(manifest) = document else {
            return Err("its index leads to another index".into());
        };
        let config = self.engine.blob(&image.repository, &manifest.config).await;
        manifest.layers(&config.map_err(|err| format!("its config: {err}"))?)
    }

    async fn make_layer_ready(&self, image: &ImageName, layer: ImageLayer) -> Result<Ready, String> {
        let refuse = |err: String| format!("layer {}: {err}", layer.blob);
        let reference = reference(image, &layer);
        let here = self.layers.origin_of(&layer.diff_id);
        // Another blob is yet to be seen to have this diffID, whatever the config says.
        let same_blob = here.as_ref().is_some_and(|here| here.blob == layer.blob);
        let allowed =
            async { self.allowed(&reference, here.as_ref()).await.map_err(|err| refuse(err.to_string())) };
        let hold = match self.layers.hold(&layer.diff_id).filter(|_| same_blob) {
            Some(hold) => {
                allowed.await?;
                hold
            }
            None => {
                let open =
                    async { self.engine.layer(&reference).await.map_err(|err| refuse(err.to_string())) };
                let ((), open) = tokio::try_join!(allowed, open)?;
                self.layers.add(&reference, open).await.map_err(|err| refuse(err.to_string()))?
            }
        };
        let implies = self.layers.implies_directories(&layer.diff_id).await;
        Ok(Ready { hold, implies: implies.map_err(|err| refuse(err.to_string()))? })
    }

    /// Whether the registry lets this node read a layer. Without an answer its last one counts: what is `here` was allowed
    /// where it came from.
    async fn allowed(&self, layer: &LayerRef, here: Option<&LayerRef>) -> Result<(), NotAllowed> {
        match self.engine.allows(layer).await {
            Err(NotAllowed::NoAnswer(reason)) if here == Some(layer) => {
                info!(layer = %layer.blob, reason, "the registry gives no answer; the layer came from there before");
                Ok(())
            }
            decided => decided,
        }
    }
}

impl Image {
    fn new(name: ImageName) -> Self {
        Self { name, progress: watch::Sender::default(), used: Mutex::new(Instant::now()) }
    }

    fn is_idle(&self) -> bool {
        self.used.lock().elapsed() > IDLE
    }

    /// The first reason stays, and is logged once.
    fn refuse(&self, reason: &str) {
        let first = self.progress.send_if_modified(|progress| {
            let first = progress.refused.is_none();
            progress.refused.get_or_insert_with(|| reason.into());
            first
        });
        if first {
            warn!(image = %self.name, reason, "the image is not lazy, containerd unpacks it");
        }
    }

    /// Returns when the image was refused.
    async fn refused(&self) {
        // The sender lives as long as the image.
        self.progress.subscribe().wait_for(|progress| progress.refused.is_some()).await.ok();
    }

    fn refusal(&self) -> Arc<str> {
        self.progress.borrow().refused.clone().unwrap_or_else(|| "the snapshotter is shutting down".into())
    }
}

impl Progress {
    /// Whether all layers are ready and this is one of them.
    fn is_ready_with(&self, diff_id: &Digest) -> bool {
        let layers = self.layers.as_deref().unwrap_or_default();
        layers.iter().all(|(_, ready)| ready.is_some())
            && layers.iter().any(|(layer, _)| layer.diff_id == *diff_id)
    }

    /// What is decided about a layer so far.
    fn decision(&self, request: &LayerRequest) -> Option<Result<ReadyLayer, Arc<str>>> {
        if let Some(reason) = &self.refused {
            return Some(Err(reason.clone()));
        }
        let layers = self.layers.as_ref()?;
        let at = layers.iter().position(|(layer, _)| layer.chain_id == request.target);
        let found = at.and_then(|at| layers.get(at).map(|found| (at, found)));
        let Some((at, (layer, ready))) = found.filter(|(_, (layer, _))| layer.blob == request.blob) else {
            return Some(Err("the image's config has no such chain of layers".into()));
        };
        let below =
            at.checked_sub(1).and_then(|below| layers.get(below)).map(|(layer, _)| layer.chain_id.clone());
        let reference = reference(&request.image, layer);
        ready.clone().map(|Ready { hold, implies }| {
            Ok(ReadyLayer { reference, below, raw_len: hold.raw_len(), implies, _hold: hold })
        })
    }
}

fn reference(image: &ImageName, layer: &ImageLayer) -> LayerRef {
    let repository = image.repository.clone();
    LayerRef { repository, blob: layer.blob.clone(), diff_id: layer.diff_id.clone() }
}
