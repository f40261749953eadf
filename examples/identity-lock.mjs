// Keeps two agents off one identity file: to the server they are one agent. They share its capacity and its quotas, and
// if one registers again, the other's token is void.
import { readFileSync, rmSync, writeFileSync } from 'node:fs';

/**
 * Takes the identity file for this process until it exits. A lock whose process is gone is taken over.
 * @returns undefined, or the id of the process that has it
 */
export function lockIdentity(file) {
  const lock = `${file}.lock`;
  for (;;) {
    try {
      writeFileSync(lock, String(process.pid), { flag: 'wx', mode: 0o600 });
      process.once('exit', () => rmSync(lock, { force: true }));
      return undefined;
    } catch (error) {
      if (error.code !== 'EEXIST') throw error;
      const holder = holderOf(lock);
      if (holder !== undefined) return holder;
      rmSync(lock, { force: true });
    }
  }
}

/** The process that has the lock; undefined if it is gone. */
function holderOf(lock) {
  let pid;
  try {
    pid = Number(readFileSync(lock, 'utf8'));
    // Our own id is left from before a restart, as in a container, where the agent is always process 1.
    if (!(pid > 0) || pid === process.pid) return undefined;
    process.kill(pid, 0);
    return pid;
  } catch (error) {
    // EPERM: it runs, as another user.
    return error.code === 'EPERM' ? pid : undefined;
  }
}
