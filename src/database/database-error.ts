/** A database that can't be used as it is; the message says what to do. */
export class DatabaseError extends Error {}

/** The server of the database does not answer. */
export class DatabaseUnreachable extends DatabaseError {}

/** Another process has the database. */
export class DatabaseInUse extends DatabaseError {}

/** It is another program's. */
export class ForeignDatabase extends DatabaseError {}

/**
 * Thrown by a unit of work that met another one half-way and can't decide by what it has read: it is run again from its start,
 * and answered ERR_UNAVAILABLE if that happens several times.
 */
export class UnitConflict extends Error {}

/** Something that was written could not be put on the disk: what the disk has is unknown from then on. */
export class SyncFailed extends DatabaseError {
  constructor(override readonly cause: Error) {
    super(
      `What was written could not be put on the disk (${cause.message}), so this process stops: what the disk has is unknown, ` +
        'and another try would not tell. Look at the disk before you start again.',
    );
  }
}
