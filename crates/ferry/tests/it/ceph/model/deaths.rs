//! What the model does where librbd's process dies, of a fault of its own or killed in the middle of a step: ferry goes on from what
//! that left.

use super::*;

/// Processes of librbd's that may die of faults of their own.
const FAULTS_MAX: u64 = 20;

/// What a process dies of that is killed.
const SIGKILL: i32 = 9;

/// Longest time until a cluster has noticed that a client is gone: it looks for 10 seconds here.
const GONE_MAX: Duration = Duration::from_secs(45);

/// Longest time after which a process is killed that writes, and one that does anything else. Microseconds.
const WRITE_LASTS: u64 = 4_000;
const STEP_LASTS: u64 = 60_000;

impl World<'_> {
    /// Has librbd do a step. Every so many steps its process is killed in the middle; if it was done by then it stays done, and else
    /// ferry finishes it.
    pub(super) fn by_librbd(&mut self, asked: &Value, line: &str) -> Result<(), String> {
        let is_killed = self.killed_at < self.steps && self.steps.is_multiple_of(self.killed_every);
        if is_killed {
            self.killed_at = self.steps;
            let is_write = matches!(asked["verb"].as_str(), Some("write" | "zero"));
            let delay = self.numbers.below(if is_write { WRITE_LASTS } else { STEP_LASTS });
            self.agent.kill_after(Duration::from_micros(delay));
        }
        match self.ask(asked) {
            Ok(()) if is_killed => self.replace_librbd(asked, format!("{} was done", asked["verb"])),
            Ok(()) => Ok(()),
            Err(error) => {
                self.replace_librbd(asked, error)?;
                self.finish(asked, line).map_err(|e| format!("left by librbd: {e}"))
            }
        }
    }

    /// Has librbd close an image, which its death does too.
    pub(super) fn close(&mut self, image: &str) -> Result<(), String> {
        let asked = json!({"verb": "close", "image": image});
        self.ask(&asked).or_else(|error| self.replace_librbd(&asked, error))
    }

    /// What librbd answers to a question that changes nothing, the next process of it where one dies of that.
    pub(super) fn look(&mut self, asked: &Value) -> Result<Value, String> {
        match self.agent.ask(asked) {
            Err(error) => {
                self.replace_librbd(asked, format!("{asked}: {error}"))?;
                self.agent.ask(asked).map_err(|e| format!("{asked}: {e}"))
            }
            answer => answer,
        }
    }

    /// Puts another process of librbd's in the place of one that was killed, or died of a fault of its own, as it does once in some
    /// thousand steps; `error` is what came of that, and is given back where it did not die.
    #[expect(clippy::print_stdout, reason = "who reads the outcome wants to know")]
    fn replace_librbd(&mut self, asked: &Value, error: String) -> Result<(), String> {
        let Some(signal) = self.agent.died_of() else { return Err(error) };
        println!("step {}: librbd's process died of signal {signal}: {error:.200}", self.steps);
        self.done.push(format!("{} librbd died of signal {signal}", self.steps));
        self.faults += u64::from(signal != SIGKILL);
        if self.faults > FAULTS_MAX {
            return Err(format!("librbd died {} times: {error}", self.faults));
        }
        // As long as the cluster counts the dead one among the watchers, another librbd does not get its locks, and says "read-only".
        let began = Instant::now();
        let asked_for = ["image", "target", "child", "to"].iter().filter_map(|key| asked[key].as_str());
        for image in self.images.keys().map(String::as_str).chain(asked_for) {
            let mut is_told = false;
            while self.is_watched(image) {
                if began.elapsed() > GONE_MAX && !is_told {
                    is_told = true;
                    self.have_osd_look_again(image)?;
                } else if began.elapsed() > GONE_MAX * 2 {
                    return Err(format!("{image} is still watched: {error}"));
                }
                thread::sleep(Duration::from_millis(200));
            }
        }
        self.agent = Agent::start(self.home, self.cluster, &self.pool);
        Ok(())
    }

    /// Marks the OSD down that serves an image's header; it comes back by itself, with the watchers there are. Once in some hundred kills
    /// it keeps one for good whose client is gone, also when that is blocklisted, and does not list it itself (16.2.15).
    #[expect(clippy::print_stdout, reason = "who reads the outcome wants to know")]
    fn have_osd_look_again(&self, image: &str) -> Result<(), String> {
        println!("step {}: {image} is watched by nobody there is", self.steps);
        let header = format!("rbd_header.{}", self.id(image)?);
        let place = self.cluster.ceph("ceph", &format!("osd map {} {header} -f json", self.pool));
        let place: Value = serde_json::from_str(&place).map_err(|e| e.to_string())?;
        self.cluster.ceph("ceph", &format!("osd down {}", place["acting_primary"]));
        Ok(())
    }

    fn is_watched(&self, image: &str) -> bool {
        let status = stock(self.home, self.cluster, &format!("status {}", self.spec(image)));
        status.status.success() && !String::from_utf8_lossy(&status.stdout).contains("Watchers: none")
    }

    /// Has ferry do what librbd's process died of, from wherever that left it.
    fn finish(&mut self, asked: &Value, line: &str) -> Result<(), String> {
        let name = |key: &str| asked[key].as_str().unwrap_or_default();
        let image = name("image");
        let changed = match name("verb") {
            "write" | "zero" => return self.settle_write(asked),
            "create" => self.make_anew(image, line)?,
            "clone" => self.make_anew(name("child"), line)?,
            "snap" => {
                if !self.shows("snap ls", image, &format!(" {} ", name("snap")))? {
                    self.ferry(line)?;
                }
                image
            }
            "snap_rm" => {
                // It goes to the trash first.
                let listed = self.answer(&format!("snap ls --all %/{image}"))?;
                let snap = name("snap");
                if [format!(" {snap} "), format!("({snap})")].iter().any(|there| listed.contains(there)) {
                    self.ferry(line)?;
                }
                image
            }
            "resize" => {
                let size = asked["size"].as_u64().unwrap();
                // Which `rbd` refuses.
                if !self.shows("info --format json", image, &format!("\"size\":{size},"))? {
                    self.ferry(line)?;
                }
                image
            }
            "flatten" => {
                if self.shows("info", image, "\tparent: ")? {
                    self.ferry(line)?;
                }
                image
            }
            "remove" => return if self.lists(image)? { self.ferry(line) } else { Ok(()) },
            "rename" => {
                let to = name("to");
                // Where it was done, nothing has the name that was.
                let is_done = |world: &Self| -> Result<bool, String> {
                    Ok(world.lists(to)? && world.answer(&format!("info %/{image}")).is_err())
                };
                if !is_done(self)? {
                    self.ferry(line)?;
                }
                if !is_done(self)? {
                    return Err(format!("{image} has its name still, or not {to}"));
                }
                to
            }
            "trash_mv" => {
                let again = self.ferry(line);
                let is_there = self.answer("trash ls %")?.lines().any(|l| l.ends_with(&format!(" {image}")));
                return if is_there && !self.lists(image)? { Ok(()) } else { again };
            }
            "trash_restore" => {
                let again = self.ferry(line);
                if !self.lists(name("to"))? {
                    return again;
                }
                name("to")
            }
            verb if verb.starts_with("migration_") => self.finish_migration(asked, line)?,
            "rollback" => {
                self.ferry(line)?;
                image
            }
            other => return Err(format!("{other} cannot be finished")),
        };
        self.mend_maps(changed, name("verb"))
    }

    /// As [`World::finish`], of the steps of a migration; the image that shows what came of it.
    fn finish_migration<'a>(&mut self, asked: &'a Value, line: &str) -> Result<&'a str, String> {
        let name = |key: &str| asked[key].as_str().unwrap_or_default();
        let image = name("image");
        let changed = match name("verb") {
            "migration_prepare" => {
                let target = name("target");
                let back = self.ferry(&format!("migration abort --no-progress %/{target}"));
                let back = back.or_else(|error| {
                    self.ferry(&format!("migration abort --no-progress %/{image}")).map_err(|e| error + &e)
                });
                self.ferry(line).map_err(|e| format!("{e}; the aborts before it: {back:?}"))?;
                target
            }
            "migration_abort" => {
                for at in [image, name("source")] {
                    if self.lists(at)? && self.shows("status", at, "Migration:")? {
                        self.ferry(&format!("migration abort --no-progress %/{at}"))?;
                    }
                }
                if !self.lists(name("source"))? {
                    self.ferry(&format!("migration abort --no-progress %/{}", name("source")))?;
                }
                name("source")
            }
            "migration_commit" => {
                if self.shows("status", image, "Migration:")? {
                    self.ferry(line)?;
                }
                image
            }
            "migration_execute" => {
                if !self.shows("status", image, "state: executed")? {
                    self.ferry(line)?;
                }
                image
            }
            other => return Err(format!("{other} cannot be finished")),
        };
        Ok(changed)
    }

    /// A write that may have happened: each block must be as before or as written, and that is what it is from now on.
    fn settle_write(&mut self, asked: &Value) -> Result<(), String> {
        let image = asked["image"].as_str().unwrap();
        let at = usize::try_from(asked["offset"].as_u64().unwrap()).unwrap();
        let zeros = || vec![0; usize::try_from(asked["length"].as_u64().unwrap()).unwrap()];
        let wanted = asked["data"].as_str().map_or_else(zeros, unhex);
        let got = self.read(By::Ferry, image, None)?;
        let head = &self.images[image].head;
        let unit = usize::try_from(UNIT).unwrap();
        for (n, wanted) in wanted.chunks(unit).enumerate() {
            let block = at + n * unit..at + n * unit + wanted.len();
            if got[block.clone()] != head[block.clone()] && got[block.clone()] != *wanted {
                return Err(format!("a mixture at {} of {image}", block.start));
            }
        }
        self.left = Some(got[at..at + wanted.len()].to_vec());
        Ok(())
    }

    /// Makes an image that may be there, or half.
    fn make_anew<'a>(&self, image: &'a str, line: &str) -> Result<&'a str, String> {
        if self.lists(image)? {
            self.ferry(&format!("rm --no-progress %/{image}"))?;
        }
        self.ferry(line).map(|()| image)
    }

    /// Has ferry make the object maps of an image anew, where a step that died left one of them flagged as invalid.
    #[expect(clippy::print_stdout, reason = "who reads the outcome wants to know")]
    fn mend_maps(&mut self, image: &str, verb: &str) -> Result<(), String> {
        let listed = self.answer(&format!("snap ls %/{image}"))?;
        let snaps = listed.lines().skip(1).filter_map(|l| l.split_whitespace().nth(1));
        let snaps: Vec<String> = snaps.map(str::to_owned).collect();
        if let Err(error) = self.check_flags(image, &snaps) {
            println!("step {}: after the death in {verb}: {error}", self.steps);
            self.close(image)?;
            self.ferry(&format!("object-map rebuild --no-progress %/{image}"))?;
        }
        self.check_flags(image, &snaps)
    }

    /// An image's id.
    pub(super) fn id(&self, image: &str) -> Result<String, String> {
        let info = self.answer(&format!("info --format json %/{image}"))?;
        let info: Value = serde_json::from_str(&info).map_err(|e| e.to_string())?;
        info["id"].as_str().map(str::to_owned).ok_or_else(|| format!("{image} has no id: {info}"))
    }

    fn lists(&self, image: &str) -> Result<bool, String> {
        Ok(self.answer("ls %")?.lines().any(|l| l == image))
    }

    fn shows(&self, command: &str, image: &str, what: &str) -> Result<bool, String> {
        Ok(self.answer(&format!("{command} %/{image}"))?.contains(what))
    }

    /// What ferry answers to a question.
    fn answer(&self, line: &str) -> Result<String, String> {
        let output = ours(self.home, self.cluster, &line.replace('%', &self.pool));
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(answer) } else { Err(format!("ferry {line}: {output:?}")) }
    }
}
