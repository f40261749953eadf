/** A database that can't be used as it is; the message says what to do. */
export class DatabaseError extends Error {}

/** The server of the database does not answer. */
export class DatabaseUnreachable extends DatabaseError {}

/** Another process has the database. */
export class DatabaseInUse extends DatabaseError {}

/** It is another program's. */
export class ForeignDatabase extends DatabaseError {}
