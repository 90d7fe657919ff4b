//! An authoritative name server for one zone, on AF_XDP: addresses that stay, or that move.
//!
//! ```text
//! cargo build --release --example dns
//! sudo target/release/examples/dns eth1 2001:db8:1::/64 example.zone --addresses 100
//! sudo target/release/examples/dns eth1 2001:db8:1::/64 example.zone \
//!      --clients 1000 --rotate 10s --secret secret
//! dig @ADDRESS www.example.org AAAA
//! ```
//!
//! It answers over UDP, and only sources on the interface's own link. It does not sign, transfer
//! or update the zone: the DO bit is ignored, and AXFR refused. A zone file is as RFC 1035 has it,
//! with the SOA record first, and without `$INCLUDE` and DNAME.
//!
//! Messages and zone files are read and written by `domain`, of NLnet Labs, who make NSD and
//! Unbound: it composes an answer on the stack, without allocating, and needs 18 packages, where
//! `hickory-proto` needs 51. It is version 0.11, since 0.12 takes Rust 1.87. Its own zone tree,
//! not declared stable yet, would add tokio and panics where an answer does not fit, so the lookup
//! is here.
//!
//! | RFC | what it is here |
//! |---|---|
//! | 1034, 4592 | the lookup: referrals with glue, CNAME in the zone, wildcards |
//! | 2308, 8020 | NODATA and NXDOMAIN with SOA; a name above another exists |
//! | 6891, 9471, 9715 | EDNS(0); TC where glue does not fit either; 1,232 bytes at most |
//! | 8482, 9619 | ANY gets one record set; a query has one question |

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{io, iter, thread};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use domain::base::iana::{Class, Opcode, OptRcode, Rcode, Rtype};
use domain::base::message_builder::{AdditionalBuilder, AnswerBuilder, PushError};
use domain::base::name::FlattenInto;
use domain::base::opt::{Opt, OptRecord};
use domain::base::wire::ParseError;
use domain::base::{
    Message, MessageBuilder, Name, Question, Record, StaticCompressor, ToName, Ttl,
};
use domain::dep::octseq::Array;
use domain::rdata::ZoneRecordData;
use domain::zonefile::inplace::{Entry, Zonefile};
use sixhop::address::mt6d::{Clock, Subnet, Timetable};
use sixhop::address::{Pool, Prefix, Targets};
use sixhop::engine::EngineKind;
use sixhop::host::{secret, time};
use sixhop::live::Method;
use sixhop::server::{Server, ServerConfig};
use sixhop::service::{Answer, Datagram, Service};

/// The longest answer, in bytes: it passes every link of IPv6 (MTU 1,280) in one packet.
const LONGEST: usize = 1_232;

/// The longest answer to a query without EDNS (RFC 1035 section 4.2.1).
const PLAIN: usize = 512;

/// What an OPT record without options takes.
const OPT_LENGTH: usize = 11;

/// CNAMEs that are followed, at most.
const CHAIN: usize = 16;

type Owned = Name<Vec<u8>>;
type Data = ZoneRecordData<Vec<u8>, Owned>;
type Target = StaticCompressor<Array<LONGEST>>;

/// Records of one name and one type.
struct Set {
    ttl: Ttl,
    data: Vec<Data>,
}

/// All sets of one name: none, where it only has names below it.
type Sets = BTreeMap<Rtype, Set>;

struct Zone {
    apex: Owned,
    soa: Set,
    names: HashMap<Owned, Sets>,
}

/// What the zone has for a name.
enum Found<'a> {
    Sets(&'a Sets),
    /// Its name servers have it: a delegation.
    Delegated(&'a Name<[u8]>, &'a Set),
    /// There is no such name.
    Nothing,
    /// It is of another zone.
    Outside,
}

/// How an answer ends, behind its own section.
enum End<'a> {
    Complete,
    Negative(Rcode),
    Referral(&'a Name<[u8]>, &'a Set),
}

impl Zone {
    fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let mut file = File::open(path).with_context(|| format!("cannot read {shown}"))?;
        let mut entries = Zonefile::load(&mut file)?;
        entries.set_default_class(Class::IN);
        let mut zone: Option<Self> = None;
        while let Some(entry) = entries.next_entry().with_context(|| format!("{shown}"))? {
            let Entry::Record(record) = entry else { bail!("{shown}: $INCLUDE is not supported") };
            let record: Record<Owned, Data> = record.flatten_into();
            let words = || format!("{shown}: {} {}", record.owner(), record.rtype());
            match &mut zone {
                Some(zone) => zone.add(&record).with_context(words)?,
                None => zone = Some(Self::begin(&record).with_context(words)?),
            }
        }
        let zone = zone.with_context(|| format!("{shown} has no records"))?;
        for (name, sets) in &zone.names {
            let lonely = !sets.contains_key(&Rtype::CNAME) || sets.len() == 1;
            ensure!(lonely, "{shown}: {name} has a CNAME and other records");
        }
        Ok(zone)
    }

    /// The zone whose SOA record this is.
    fn begin(record: &Record<Owned, Data>) -> Result<Self> {
        let ZoneRecordData::Soa(soa) = record.data() else { bail!("the SOA must be first") };
        // RFC 2308 section 5: how long a resolver may remember that there is nothing.
        let ttl = record.ttl().min(soa.minimum());
        let soa = Set { ttl, data: vec![record.data().clone()] };
        let mut zone = Self { apex: record.owner().to_vec(), soa, names: HashMap::new() };
        zone.add(record)?;
        Ok(zone)
    }

    fn add(&mut self, record: &Record<Owned, Data>) -> Result<()> {
        let (owner, rtype) = (record.owner(), record.rtype());
        ensure!(owner.ends_with(&self.apex), "it is not under {}", self.apex);
        ensure!(record.class() == Class::IN, "its class is not IN");
        ensure!(rtype != Rtype::DNAME, "DNAME is not supported");
        ensure!(
            rtype != Rtype::SOA || !self.names.contains_key(owner.for_slice()),
            "a zone has one SOA"
        );
        for name in suffixes(owner.for_slice()).take_while(|name| name.ends_with(&self.apex)) {
            self.names.entry(name.to_vec()).or_default();
        }
        let sets = self.names.entry(owner.to_vec()).or_default();
        let set = sets.entry(rtype).or_insert(Set { ttl: record.ttl(), data: Vec::new() });
        set.ttl = set.ttl.min(record.ttl());
        if !set.data.contains(record.data()) {
            set.data.push(record.data().clone());
        }
        ensure!(rtype != Rtype::CNAME || set.data.len() == 1, "a name has one CNAME");
        Ok(())
    }

    /// RFC 1034 section 4.3.2, from the name upwards: the delegation nearest to the apex counts.
    fn find(&self, name: &Name<[u8]>, rtype: Rtype) -> Found<'_> {
        if !name.ends_with(&self.apex) {
            return Found::Outside;
        }
        let (mut closest, mut delegation) = (None, None);
        for above in suffixes(name).take_while(|above| **above != self.apex) {
            let Some((known, sets)) = self.names.get_key_value(above) else { continue };
            closest = closest.or(Some((above, sets)));
            // Its DS records are the parent's (RFC 4035 section 3.1.4.1).
            let ours = rtype == Rtype::DS && above == name;
            delegation = sets
                .get(&Rtype::NS)
                .filter(|_| !ours)
                .map(|servers| (known.for_slice(), servers))
                .or(delegation);
        }
        if let Some((known, servers)) = delegation {
            return Found::Delegated(known, servers);
        }
        let apex = self.apex.for_slice();
        let Some((closest, sets)) =
            closest.or_else(|| self.names.get(apex).map(|sets| (apex, sets)))
        else {
            return Found::Nothing;
        };
        match closest == name {
            true => Found::Sets(sets),
            false => self.wildcard(closest).map_or(Found::Nothing, Found::Sets),
        }
    }

    /// What names below `name` have that do not exist (RFC 4592).
    fn wildcard(&self, name: &Name<[u8]>) -> Option<&Sets> {
        let mut star = [0; 2 + 255];
        let end = 2 + name.as_slice().len();
        star[..2].copy_from_slice(b"\x01*");
        star[2..end].copy_from_slice(name.as_slice());
        self.names.get(Name::from_slice(&star[..end]).ok()?)
    }

    /// Writes the answer section, and says what comes behind it. `None` where the question is not
    /// for this zone.
    fn answer<'a>(
        &'a self,
        name: &'a Name<[u8]>,
        rtype: Rtype,
        section: &mut AnswerBuilder<Target>,
    ) -> Result<Option<End<'a>>, PushError> {
        let (mut owner, mut seen) = (name, [name; CHAIN]);
        for step in 0..CHAIN {
            if seen[..step].contains(&owner) {
                break;
            }
            seen[step] = owner;
            let sets = match self.find(owner, rtype) {
                Found::Sets(sets) => sets,
                Found::Delegated(cut, servers) => return Ok(Some(End::Referral(cut, servers))),
                Found::Nothing => return Ok(Some(End::Negative(Rcode::NXDOMAIN))),
                Found::Outside if owner == name => return Ok(None),
                Found::Outside => return Ok(Some(End::Complete)),
            };
            let (set, alias) = match sets.get(&Rtype::CNAME) {
                Some(set) if ![Rtype::CNAME, Rtype::ANY].contains(&rtype) => (Some(set), true),
                _ if rtype == Rtype::ANY => (sets.values().next(), false),
                _ => (sets.get(&rtype), false),
            };
            let Some(set) = set else { return Ok(Some(End::Negative(Rcode::NOERROR))) };
            section.header_mut().set_aa(true);
            for data in &set.data {
                section.push((owner, Class::IN, set.ttl, data))?;
            }
            match set.data.first() {
                Some(ZoneRecordData::Cname(cname)) if alias => owner = cname.cname().for_slice(),
                _ => break,
            }
        }
        Ok(Some(End::Complete))
    }

    /// The response to a query with this question.
    fn respond(
        &self,
        message: &Message<[u8]>,
        question: &Question<&Name<[u8]>>,
        limit: usize,
    ) -> Result<AdditionalBuilder<Target>, PushError> {
        let (name, rtype) = (*question.qname(), question.qtype());
        let ours = matches!(question.qclass(), Class::IN | Class::ANY)
            && ![Rtype::AXFR, Rtype::IXFR].contains(&rtype);
        let mut section = builder(limit).start_answer(message, Rcode::NOERROR)?;
        let end = if ours { self.answer(name, rtype, &mut section)? } else { None };
        let Some(end) = end else {
            return Ok(builder(limit).start_error(message, Rcode::REFUSED).additional());
        };
        let mut section = section.authority();
        match &end {
            End::Complete => {}
            End::Negative(rcode) => {
                section.header_mut().set_rcode(*rcode);
                section.header_mut().set_aa(true);
                for data in &self.soa.data {
                    section.push((&self.apex, Class::IN, self.soa.ttl, data))?;
                }
            }
            End::Referral(cut, servers) => {
                for data in &servers.data {
                    section.push((*cut, Class::IN, servers.ttl, data))?;
                }
            }
        }
        let mut section = section.additional();
        let End::Referral(_, servers) = end else { return Ok(section) };
        for data in &servers.data {
            let ZoneRecordData::Ns(server) = data else { continue };
            let server = server.nsdname().for_slice();
            let Some(sets) = self.names.get(server) else { continue };
            for set in [Rtype::AAAA, Rtype::A].iter().filter_map(|rtype| sets.get(rtype)) {
                for data in &set.data {
                    section.push((server, Class::IN, set.ttl, data))?;
                }
            }
        }
        Ok(section)
    }
}

/// The name itself, its parent, and so on up to the root.
fn suffixes(name: &Name<[u8]>) -> impl Iterator<Item = &Name<[u8]>> {
    iter::successors(Some(name), |name| {
        (!name.is_root()).then(|| name.slice_from(name.first().compose_len().into()))
    })
}

/// A message with room for `limit` bytes, an OPT record among them.
fn builder(limit: usize) -> MessageBuilder<Target> {
    // An empty array holds the header.
    let target = StaticCompressor::new(Array::new());
    let mut builder = MessageBuilder::from_target(target).expect("a header fits");
    builder.set_push_limit(limit - OPT_LENGTH);
    builder
}

/// The OPT record of a query; an error where there are two.
fn opt(message: &Message<[u8]>) -> Result<Option<OptRecord<&[u8]>>, ParseError> {
    let mut records = message.additional()?.limit_to::<Opt<_>>();
    let first = records.next().transpose()?.map(OptRecord::from);
    match records.next() {
        Some(_) => Err(ParseError::form_error("two OPT records")),
        None => Ok(first),
    }
}

/// The response to any message, of which `room` bytes can be sent; `None` where it is a response
/// itself, or too short to be told from one.
fn response(zone: &Zone, query: &[u8], room: usize) -> Option<Target> {
    let message = Message::from_slice(query).ok()?;
    if message.header().qr() {
        return None;
    }
    let (edns, limit) = match opt(message) {
        Ok(Some(edns)) => (Some(edns.version()), usize::from(edns.udp_payload_size()).max(PLAIN)),
        Ok(None) => (None, PLAIN),
        Err(_) => return Some(error(message, room.min(PLAIN), Rcode::FORMERR).finish()),
    };
    let limit = limit.min(room).min(LONGEST);
    let flat = message.sole_question();
    let question = flat.as_ref().ok().and_then(|question| {
        let name = Name::from_slice(question.qname().as_flat_slice()?).ok()?;
        Some(Question::new(name, question.qtype(), question.qclass()))
    });
    let mut response = match question {
        _ if message.header().opcode() != Opcode::QUERY => error(message, limit, Rcode::NOTIMP),
        _ if edns > Some(0) => error(message, limit, Rcode::NOERROR), // BADVERS, by OPT
        None => error(message, limit, Rcode::FORMERR),
        Some(question) => zone.respond(message, &question, limit).unwrap_or_else(|_| {
            // What is cut short helps nobody (RFC 2181 section 9).
            let mut empty = error(message, limit, Rcode::NOERROR);
            empty.header_mut().set_tc(true);
            empty
        }),
    };
    if let Some(version) = edns {
        response.as_builder_mut().clear_push_limit();
        let added = response.opt(|opt| {
            opt.set_udp_payload_size(LONGEST as u16);
            if version > 0 {
                opt.set_rcode(OptRcode::BADVERS);
            }
            Ok(())
        });
        debug_assert!(added.is_ok(), "there is room kept for it");
    }
    Some(response.finish())
}

/// A response without records.
fn error(message: &Message<[u8]>, limit: usize, rcode: Rcode) -> AdditionalBuilder<Target> {
    builder(limit).start_error(message, rcode).additional()
}

#[derive(Clone)]
struct Dns(Arc<Zone>);

impl Service for Dns {
    fn answer(&mut self, datagram: &mut Datagram) -> Answer {
        let room = datagram.buffer().len();
        if room < PLAIN {
            return Answer::Nothing;
        }
        match response(&self.0, datagram.payload(), room) {
            Some(response) => datagram.reply(response.as_slice()),
            None => Answer::Nothing,
        }
    }
}

/// Answers for one zone, on addresses that stay or that move
#[derive(Parser)]
struct Args {
    interface: String,
    prefix: Prefix,
    zone: PathBuf,
    /// How many addresses, where they stay
    #[arg(long, default_value_t = 100)]
    addresses: u64,
    /// How many clients have an address of their own, where they move
    #[arg(long, requires = "secret", conflicts_with = "addresses")]
    clients: Option<u32>,
    /// How long a client's address lives
    #[arg(long, default_value = "10s", requires = "clients",
        value_parser = humantime::parse_duration)]
    rotate: Duration,
    /// File with the secret that server and clients share
    #[arg(long, requires = "clients")]
    secret: Option<PathBuf>,
    #[arg(long, default_value_t = 53)]
    port: u16,
    /// How to make the addresses live
    #[arg(long, default_value = "live-map")]
    bind: Method,
    /// Stop when standard input ends
    #[arg(long)]
    stop_on_eof: bool,
}

impl Args {
    fn targets(&self) -> Result<Targets> {
        let (Some(clients), Some(path)) = (self.clients, &self.secret) else {
            return Ok(Pool::new(self.prefix, self.addresses, 1)?.into());
        };
        let (subnet, clock) = (Subnet::new(self.prefix)?, Clock::new(self.rotate)?);
        Ok(Timetable::new(subnet, clock, &secret::read(path)?, clients, 1).into())
    }
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dns: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let service = Dns(Arc::new(Zone::read(&args.zone)?));
    let targets = args.targets()?;
    let first = match &targets {
        Targets::Pool(pool) => format!("the first is {}", pool.address(0)),
        Targets::Moving(table) => {
            let step = table.clock().step(time::unix_time());
            format!("client 0 asks {} in step {step}", table.address(0, step))
        }
    };
    let config = ServerConfig {
        engine: Some(EngineKind::AFXDP),
        port: args.port,
        ..ServerConfig::hold(args.interface, targets, args.bind)
    };
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.clone())?;
    }
    if args.stop_on_eof {
        let stop = stop.clone();
        thread::spawn(move || {
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            stop.store(true, Ordering::Relaxed);
        });
    }
    let server = Server::start_with(&config, &service, &mut |_| true)?;
    let (zone, addresses) = (&service.0.apex, server.ready().addresses);
    println!("ready: {zone} on {addresses} addresses, port {}; {first}", args.port);
    let totals = server.run(&stop, |_| {}, &mut |_| {})?;
    println!("stopped: {} queries answered", totals.stats.counters.answered);
    Ok(())
}
