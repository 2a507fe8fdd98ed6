//! The engine that compiled components run in: one for the process, without a clock, files,
//! sockets or anything else of WASI; and the thread that makes its epochs.
//!
//! An epoch is a hundredth of a second. Compiled code looks at it in every loop and function,
//! and calls back when it has changed, so that cancellation and deadlines reach code that
//! never returns. The thread holds the engine weakly and ends with it.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use kymo_config::settings::Plugins;
use kymo_kernel::env::Env;
use kymo_kernel::pools::thread;
use kymo_kernel::{Code, Error, Result};
use wasmtime::component::Component;
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::permits::Permits;

/// Time between two looks of running code at its deadline.
pub const TICK: Duration = Duration::from_millis(10);

/// Core instances of one component instance: resources and imports add small ones of their own,
/// and CPython comes with 38.
pub(crate) const CORE_INSTANCES: u32 = 64;

/// Tables of one component instance: as small, and as many.
pub(crate) const TABLES: u32 = 16;

/// The engine of the process and what its instances share.
pub struct Engine {
    wasm: wasmtime::Engine,
    pooling: bool,
    env: Env,
    permits: Arc<Permits>,
}

impl Engine {
    /// Starts the engine and its thread.
    ///
    /// Where the address space for a pool of instances cannot be had, instances are allocated
    /// one by one: slower, and otherwise the same.
    ///
    /// # Errors
    /// [`Code::Internal`] if this processor or system cannot run compiled components,
    /// [`Code::Io`] if the thread cannot be started.
    pub fn start(settings: &Plugins, env: Env) -> Result<Arc<Engine>> {
        let (wasm, pooling) = match pooled(settings).and_then(|config| make(&config)) {
            Ok(engine) => (engine, true),
            Err(error) => {
                tracing::warn!(%error, "no pool for plugin instances; they are allocated one by one");
                (make(&base(settings.stack_bytes))?, false)
            }
        };
        let weak = wasm.weak();
        thread("kymo-plugin-epoch", move || {
            while let Some(engine) = weak.upgrade() {
                engine.increment_epoch();
                drop(engine);
                pause();
            }
        })?;
        let permits = Permits::new(
            settings.max_instances,
            Duration::from_millis(settings.instance_wait_ms),
            env.clock.clone(),
        );
        Ok(Arc::new(Engine { wasm, pooling, env, permits }))
    }

    /// Whether instances come from a pool that was reserved at the start.
    #[must_use]
    pub fn pooling(&self) -> bool {
        self.pooling
    }

    /// Instances that live now.
    #[must_use]
    pub fn instances(&self) -> usize {
        self.permits.taken()
    }

    pub(crate) fn wasm(&self) -> &wasmtime::Engine {
        &self.wasm
    }

    pub(crate) fn env(&self) -> &Env {
        &self.env
    }

    pub(crate) fn permits(&self) -> &Arc<Permits> {
        &self.permits
    }

    /// What compiled code must agree with to run in this engine: the versions of the compiler
    /// and the settings it worked under, as text for the name of a file.
    #[must_use]
    pub fn compatibility(&self) -> String {
        compatibility(&self.wasm)
    }

    /// Loads compiled code.
    ///
    /// # Safety
    /// The bytes are native code and are run as such: they must come unchanged from
    /// [`crate::compile`].
    ///
    /// # Errors
    /// [`Code::Corrupt`] if they are not of this engine.
    pub(crate) unsafe fn load(&self, compiled: &[u8]) -> Result<Component> {
        // SAFETY: promised by the caller.
        let loaded = unsafe { Component::deserialize(&self.wasm, compiled) };
        loaded.map_err(|error| Error::new(Code::Corrupt, format!("load compiled code: {error:#}")))
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "epochs are real time: code runs in it, in simulation too"
)]
fn pause() {
    std::thread::sleep(TICK);
}

/// A compiler of the same kind, for the process that compiles: what it makes runs in
/// [`Engine`].
///
/// # Errors
/// [`Code::Internal`] if there is no compiler for this processor.
pub(crate) fn compiler(stack_bytes: usize) -> Result<wasmtime::Engine> {
    make(&base(stack_bytes))
}

fn compatibility(engine: &wasmtime::Engine) -> String {
    use std::hash::{Hash, Hasher};

    use sha2::{Digest, Sha256};

    // The hash that wasmtime offers is a value to feed to a hasher; this one is stable.
    struct Stable(Sha256);
    impl Hasher for Stable {
        fn finish(&self) -> u64 {
            let digest = self.0.clone().finalize();
            u64::from_le_bytes([
                digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6],
                digest[7],
            ])
        }
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
    }
    let mut hasher = Stable(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn make(config: &Config) -> Result<wasmtime::Engine> {
    wasmtime::Engine::new(config)
        .map_err(|error| Error::internal(format!("start the engine of plugins: {error:#}")))
}

/// Everything that compiled code depends on.
fn base(stack_bytes: usize) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .max_wasm_stack(stack_bytes)
        .wasm_backtrace_max_frames(NonZeroUsize::new(16))
        // Four gigabytes of addresses: loops of plugins need no bounds checks.
        .memory_reservation(4 << 30)
        .wasm_memory64(false)
        // For the code between two modules of one component, each with a memory of its own. No
        // module may come with several: `validate` refuses it.
        .wasm_multi_memory(true)
        // Results must not depend on the processor.
        .wasm_relaxed_simd(false);
    config
}

fn pooled(settings: &Plugins) -> Result<Config> {
    let too_many = || Error::new(Code::Settings, "plugins.max_instances is too large for a pool");
    let instances = u32::try_from(settings.max_instances).map_err(|_| too_many())?;
    // Room for the most that every instance may have: who has a permit finds a place.
    let all = |each: u32| instances.checked_mul(each).ok_or_else(too_many);
    let memory = usize::try_from(settings.max_memory_bytes).map_err(|_| too_many())?;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(all(CORE_INSTANCES)?)
        .total_memories(all(settings.max_memories)?)
        .total_tables(all(TABLES)?)
        .table_elements(settings.max_table_elements)
        .max_memory_size(memory)
        // The limiter counts them, with a pool and without one.
        .max_core_instances_per_component(u32::MAX)
        .max_memories_per_component(settings.max_memories)
        .max_tables_per_component(TABLES)
        .linear_memory_keep_resident(256 << 10)
        .table_keep_resident(16 << 10)
        .pagemap_scan(Enabled::Auto)
        .max_unused_warm_slots(64);
    let mut config = base(settings.stack_bytes);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Ok(config)
}

#[cfg(test)]
mod tests {
    use kymo_kernel::env::real;

    use super::*;

    #[test]
    fn what_the_compiler_makes_fits_the_engine_with_and_without_a_pool() {
        let settings = Plugins::default();
        let engine = Engine::start(&settings, real::env()).unwrap();
        assert!(engine.pooling());
        let alone = compiler(settings.stack_bytes).unwrap();
        assert_eq!(engine.compatibility(), compatibility(&alone));
        let greedy = Plugins { max_instances: usize::MAX, ..Plugins::default() };
        let fallback = Engine::start(&greedy, real::env()).unwrap();
        assert!(!fallback.pooling());
        assert_eq!(fallback.compatibility(), engine.compatibility());
    }
}
