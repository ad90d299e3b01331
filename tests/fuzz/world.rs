//! The world as the fuzzer needs it: clients that send in pieces and take little, servers that may
//! say anything.

use crate::common::rng::Rng;
use crate::common::world::{self, Peer};

/// Turns until a world that does not come to rest counts as spinning.
const TURNS: usize = 100_000;

/// A client.
pub struct Client {
    peer: Peer,
    /// It asks and takes no answer.
    greedy: bool,
    /// What it was answered and has not looked at.
    pub got: Vec<u8>,
}

impl Client {
    /// The proxy has closed it.
    pub fn closed(&self) -> bool {
        self.peer.is_closed()
    }
}

/// What is done to a server's answers.
#[derive(Clone, Copy, PartialEq)]
pub enum Servers {
    /// Nothing.
    Good,
    /// Anything.
    Mad,
}

pub struct World {
    world: world::World,
    rng: Rng,
    /// Links on which a server answers no more.
    mute: Vec<usize>,
    pub madness: Servers,
    /// Values over 8 KB fit.
    pub large: bool,
}

impl World {
    /// Two primaries on ports 1 and 2, a backup on port 3; all started a few seconds ago.
    pub fn new(options: &str, rng: Rng, madness: Servers) -> World {
        let farm = "-s 127.0.0.1:1 -s 127.0.0.1:2 -b 127.0.0.1:3 ";
        let options = farm.to_string() + options;
        let words: Vec<&str> = options.split(' ').collect();
        let mut world = world::World::of(world::options(&words));
        for server in world.servers.values_mut() {
            (server.store.age, server.store.item_max) = (5, 1 << 20);
        }
        World {
            world,
            rng,
            mute: Vec::new(),
            madness,
            large: false,
        }
    }

    pub fn client(&mut self) -> Client {
        Client {
            peer: self.world.client().narrow(1 << 20),
            greedy: false,
            got: Vec::new(),
        }
    }

    /// Sends all of `bytes`, in pieces, with turns in between.
    pub fn send(&mut self, client: &mut Client, bytes: &[u8]) -> Result<(), String> {
        for cut in self.rng.cuts(bytes.len()) {
            self.world.send(&client.peer, &bytes[cut]);
            if self.rng.one_in(3) {
                self.turn(&mut [client]);
            }
        }
        Ok(())
    }

    /// From now on the client asks and takes no answer, or takes them again.
    pub fn greedy(&mut self, client: &mut Client, greedy: bool) {
        client.greedy = greedy;
        let room = if greedy { 0 } else { 1 << 20 };
        client.peer = client.peer.clone().narrow(room);
        if !greedy {
            client.peer.may_write();
        }
    }

    /// The client leaves.
    pub fn leave(&self, client: &mut Client) {
        client.peer.end();
    }

    /// Turns until nothing moves any more.
    pub fn rest(&mut self, clients: &mut [&mut Client]) -> Result<(), String> {
        match (0..TURNS).any(|_| !self.turn(clients)) {
            true => Ok(()),
            false => Err(format!("no rest after {TURNS} turns")),
        }
    }

    /// The clock goes on by so much, a turn every tenth of a second.
    pub fn pass(&mut self, seconds: u64, clients: &mut [&mut Client]) -> Result<(), String> {
        for _ in 0..seconds * 10 {
            self.world.now += world::SECOND / 10;
            self.rest(clients)?;
        }
        Ok(())
    }

    /// One turn of everybody; false if nothing moved.
    fn turn(&mut self, clients: &mut [&mut Client]) -> bool {
        let mut moved = self.world.work();
        let links: Vec<usize> = self.world.links.keys().copied().collect();
        for conn in links {
            moved |= self.serve(conn);
        }
        for client in clients.iter_mut().filter(|c| !c.greedy) {
            // Now and then a little.
            let most = match client.peer.is_full() {
                true => self.rng.pick(&[1, 100, 70_000, 1 << 20]),
                false => usize::MAX,
            };
            moved |= self.world.take_some(&client.peer, most, &mut client.got) > 0;
        }
        self.world.end_turn() || moved
    }

    /// A server reads what it was sent and answers, some of it now and some later.
    fn serve(&mut self, conn: usize) -> bool {
        let mut moved = self.world.read_link(conn, usize::MAX) > 0;
        while let Some(mut done) = self.world.do_one(conn) {
            let mut ended = false;
            if self.madness == Servers::Mad {
                ended = self.go_mad(conn, &mut done.answer);
            }
            if let Some(link) = self.world.links.get_mut(&conn) {
                if !self.mute.contains(&conn) {
                    link.output.put(&done.answer);
                }
            }
            if ended {
                self.world.fin_link(conn);
            }
        }
        let Some(link) = self.world.links.get(&conn) else {
            return moved;
        };
        let most = match self.rng.one_in(3) {
            true => 1 + self.rng.index(link.output.len()),
            false => usize::MAX,
        };
        moved |= self.world.write_link(conn, most) > 0;
        moved | self.world.end_link(conn)
    }

    /// What may become of a server's answer; true if it sends nothing more.
    fn go_mad(&mut self, conn: usize, answer: &mut Vec<u8>) -> bool {
        let rng = &mut self.rng;
        match rng.below(40) {
            0 => answer.clear(),
            1 => self.mute.push(conn),
            2 => return true,
            3 => answer.extend_from_within(..),
            4 => answer
                .splice(0..0, *b"VALUE good:9 0 1\r\nx\r\n")
                .for_each(drop),
            5..8 => crate::input::mutate(rng, answer),
            8 => *answer = rng.pick(crate::parsers::ASKED).2.to_vec(),
            9 => *answer = (0..rng.below(3000)).map(|_| rng.next() as u8).collect(),
            _ => {}
        }
        false
    }

    /// `bytes_in_flight` of `stats proxy`, asked by a client of its own.
    pub fn bytes_in_flight(&mut self) -> Result<usize, String> {
        let mut asker = self.client();
        self.send(&mut asker, b"stats proxy\r\n")?;
        self.rest(&mut [&mut asker])?;
        let text = String::from_utf8_lossy(&asker.got).into_owned();
        self.leave(&mut asker);
        self.rest(&mut [&mut asker])?;
        text.lines()
            .find_map(|l| l.strip_prefix("STAT bytes_in_flight ")?.parse().ok())
            .ok_or_else(|| format!("no bytes_in_flight in {text:?}"))
    }
}
