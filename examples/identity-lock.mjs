// Prevents two agents from using one identity file. To the server they would be one agent: they would share its capacity and its
// quotas, and if one registered again, the other's token would be revoked.
import { readFileSync, rmSync, writeFileSync } from 'node:fs';

/**
 * Locks the identity file until this process exits. Replaces a lock whose process is gone.
 * @returns undefined, or the id of the process that holds the lock
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

/** Returns the id of the process that holds the lock; undefined if it is gone. */
function holderOf(lock) {
  let pid;
  try {
    pid = Number(readFileSync(lock, 'utf8'));
    // Our own id is from before a restart, for example in a container, where the agent is always process 1.
    if (!(pid > 0) || pid === process.pid) return undefined;
    process.kill(pid, 0);
    return pid;
  } catch (error) {
    // EPERM: it runs, as another user.
    return error.code === 'EPERM' ? pid : undefined;
  }
}
